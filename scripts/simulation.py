"""Workers whose trials only sleep: what a storage costs when many of them share it."""

from __future__ import annotations

import multiprocessing
import time
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from hpo_summarize.config.schema import SearchSection
from hpo_summarize.errors import SearchFailed
from hpo_summarize.launch.workers import end_with_parent
from hpo_summarize.redact import redact_output, redact_url, remember_secrets
from hpo_summarize.study.location import find_study
from hpo_summarize.study.run import open_study, run_study
from hpo_summarize.study.trials import counts

_STUDY = "simulation"
_EPOCHS = 5
_PARAMETERS = 8


@dataclass(frozen=True)
class Simulation:
    """What came of a simulated search.

    Attributes:
        n_trials: Number of finished trials.
        wall_seconds: Seconds from the start of the first worker to the end of the last one.
        lost_seconds: Seconds of a trial outside of its sleep, the median over the trials.
        slowest_seconds: The same for the slowest trial.
        n_duplicates: Number of trials whose values another trial had before.
        n_unfinished: Number of trials that are left running or waiting.
        n_failed_workers: Number of workers that ended with an error.
    """

    n_trials: int
    wall_seconds: float
    lost_seconds: float
    slowest_seconds: float
    n_duplicates: int
    n_unfinished: int
    n_failed_workers: int


def simulate(storage: str, n_workers: int, n_trials: int, trial_seconds: float) -> Simulation:
    """Runs a search with `n_workers` processes that start at the same instant.

    Args:
        storage: URL; a study of the name `simulation` must not be in it.
        n_workers: Number of processes.
        n_trials: Number of trials of all of them together.
        trial_seconds: Seconds that a trial sleeps, spread over its epochs.

    Raises:
        SearchFailed: No trial finished.
        StudyError: The storage cannot be used.
    """
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(n_workers + 1)
    arguments = (storage, n_trials, trial_seconds, barrier)
    workers = [context.Process(target=_work, args=(i, *arguments)) for i in range(n_workers)]
    for worker in workers:
        worker.start()
    barrier.wait()
    start = time.monotonic()
    for worker in workers:
        worker.join()
    seconds = time.monotonic() - start
    failed = sum(worker.exitcode != 0 for worker in workers)
    return _summarise(storage, seconds, trial_seconds, failed)


def _work(number: int, storage: str, n_trials: int, trial_seconds: float, barrier: Any) -> None:
    if parent := multiprocessing.parent_process():
        end_with_parent(parent.pid or 0)
    remember_secrets(storage)
    redact_output()  # A new process, which prints by itself why it fails.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    barrier.wait()
    study = open_study(SearchSection(pruner=None), _STUDY, storage, ["maximize"], worker=number)

    def objective(trial: optuna.Trial) -> float:
        values = [trial.suggest_float(f"x{i}", 0.0, 1.0) for i in range(_PARAMETERS)]
        for epoch in range(1, _EPOCHS + 1):
            time.sleep(trial_seconds / _EPOCHS)
            trial.report(sum(values) * epoch, epoch)
            trial.should_prune()
        return sum(values)

    run_study(study, objective, n_trials)


def _summarise(storage: str, seconds: float, trial_seconds: float, failed: int) -> Simulation:
    study = find_study(storage, _STUDY)
    trials = [] if study is None else study.trials
    finished = [trial for trial in trials if counts(trial) and trial.duration is not None]
    if not finished:
        raise SearchFailed(
            f"no simulated trial finished in {redact_url(storage)}, and {failed} workers failed; "
            f"fix what they print above, or name a storage without a study '{_STUDY}'"
        )
    lost = sorted(t.duration.total_seconds() - trial_seconds for t in finished if t.duration)
    values = [tuple(sorted(trial.params.items())) for trial in finished]
    open_states = (TrialState.RUNNING, TrialState.WAITING)
    return Simulation(
        n_trials=len(finished),
        wall_seconds=seconds,
        lost_seconds=lost[len(lost) // 2],
        slowest_seconds=lost[-1],
        n_duplicates=len(values) - len(set(values)),
        n_unfinished=sum(trial.state in open_states for trial in trials),
        n_failed_workers=failed,
    )
