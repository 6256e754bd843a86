"""Opens and runs studies: resume, totals over several workers, and the rules for stopping."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo_summarize.config.schema import SearchSection
from hpo_summarize.errors import (
    RunStopped,
    SearchFailed,
    StudyError,
    StudyMoved,
    stopping_at_storage_failure,
    storage_failure,
)
from hpo_summarize.launch.signals import DeferredInterrupt
from hpo_summarize.redact import redact_url
from hpo_summarize.study.heartbeats import HeartbeatMonitor, sending_heartbeats
from hpo_summarize.study.location import find_study, staying_in_place
from hpo_summarize.study.recovery import (
    is_duplicate,
    n_being_requeued,
    requeue_orphans,
    requeue_own,
    set_worker,
    this_worker,
    withdraw_duplicates,
)
from hpo_summarize.study.samplers import SeededAtFirstTrial, build_pruner, build_sampler
from hpo_summarize.study.storage import build_storage, open_with_retries
from hpo_summarize.study.trials import counts, finished_trials
from hpo_summarize.study.user_attrs import (
    BEGUN,
    EARLIER,
    ENDED_RUN,
    EXHAUSTED,
    FAILURE,
    INTERRUPTED,
    SECONDS,
    SURPLUS,
)
from hpo_summarize.study.warm_start import WarmStart

Objective = Callable[[Trial], float | Sequence[float]]
StudyCallback = Callable[[optuna.Study, FrozenTrial], None]

BASELINE_SECONDS = 10  # A worker waits so long for the one that creates the study.
_POLL_SECONDS = 1  # While the last trials are with other workers.
_SAME_FAILURES = 3  # As many failures in a row, with one reason, end a study.


class TrialError(Exception):
    """Marks a trial of several objectives as failed; Optuna cannot mark it as pruned."""


def open_study(
    search: SearchSection,
    study_name: str,
    storage: str,
    directions: Sequence[str],
    baselines: Sequence[Mapping[str, Any]] = (),
    worker: int = 0,
    n_epochs: float | None = None,
    warm_start: WarmStart | None = None,
    opened: BaseStorage | None = None,
) -> optuna.Study:
    """Creates a study, or opens the one of this name to continue it.

    Several workers may do so at the same instant: one of them creates it.

    Args:
        search: Names the sampler and the pruner; without a pruner nothing is pruned.
        study_name: Name in the storage.
        storage: URL of the storage.
        directions: `"maximize"` or `"minimize"` for each objective.
        baselines: Values of the first trials; a study with trials gets those that are new.
        worker: Number of this worker among those that start together.
        n_epochs: Most epochs that a trial can have.
        warm_start: Earlier trials that a new study begins with.
        opened: The storage at this URL, where it is open already.

    Raises:
        StudyError: The storage cannot be reached, its study has other directions, or the earlier
            trials cannot be taken.
    """
    if warm_start is not None:
        made = find_study(storage, study_name)
        if made is None or not _is_begun(made):
            _ = warm_start.copies  # If they cannot be read, the study is not created.
    study, created = open_with_retries(
        storage,
        lambda: _create_or_load(study_name, opened or build_storage(storage), directions),
    )
    known = [direction.name.lower() for direction in study.directions]
    if known != list(directions):
        raise StudyError(
            f"the study '{study_name}' in {redact_url(storage)} was made with the directions "
            f"{known}, and now {list(directions)} are asked for; choose another --study_name"
        )
    if baselines:
        if not created:
            _wait_until_begun(study)
        if warm_start is not None and _is_begun(study):
            warm_start.check_begun(study)
        _begin_with(study, baselines, warm_start)
    pruner = search.pruner.model_dump() if search.pruner else {"name": "none"}
    study.pruner = build_pruner(n_epochs=n_epochs, **pruner)
    build = functools.partial(build_sampler, worker=worker, **search.sampler.model_dump())
    study.sampler = SeededAtFirstTrial(study, build)
    return study


def _create_or_load(
    name: str, storage: BaseStorage, directions: Sequence[str]
) -> tuple[optuna.Study, bool]:
    """The study, and whether this process created it: of several at once one does."""
    wanted: Any = list(directions)
    try:
        study = optuna.create_study(study_name=name, storage=storage, directions=wanted)
    except optuna.exceptions.DuplicatedStudyError:
        return optuna.load_study(study_name=name, storage=storage), False
    return study, True


def _begin_with(
    study: optuna.Study, baselines: Sequence[Mapping[str, Any]], warm_start: WarmStart | None
) -> None:
    """Queues the baselines as the first trials, and adds the earlier ones to a new study.

    Several workers may do so at once, and what one could not finish, the next one does.
    """
    for values in baselines:
        study.enqueue_trial(dict(values), skip_if_exists=True)
    withdraw_duplicates(study)
    if not _is_begun(study):
        if warm_start is not None:
            warm_start.add_to(study)
        study.set_user_attr(BEGUN, True)


def _is_begun(study: optuna.Study) -> bool:
    """Whether all first trials are there; a worker runs none before."""
    return BEGUN in study.user_attrs or any(
        trial.state != TrialState.WAITING and not trial.user_attrs.keys() & {EARLIER, SURPLUS}
        for trial in study.get_trials(deepcopy=False)
    )


def _wait_until_begun(study: optuna.Study) -> None:
    """Waits for the worker that creates the study to queue the first trials.

    If that worker died, the next one queues them; if it is only slow, duplicates are withdrawn.
    """
    count, latest = -1, time.monotonic()
    while not _is_begun(study) and time.monotonic() - latest < BASELINE_SECONDS:
        if (n_trials := len(study.get_trials(deepcopy=False))) != count:
            count, latest = n_trials, time.monotonic()
        time.sleep(0.1)


def run_study(
    study: optuna.Study,
    objective: Objective,
    n_trials: int,
    timeout: float | None = None,
    callbacks: Sequence[StudyCallback] = (),
    folder: Path | None = None,
) -> None:
    """Runs trials until the study holds `n_trials` finished ones, or `timeout` seconds are over.

    Trials of earlier runs and of other workers count; several workers on one storage do `n_trials`
    together. The timeout does not cut off a running trial. An interrupt (Ctrl-C) ends the run at
    once; a trial that was cut off, by that or by a crash, is run again first, with the same values.
    With `brute_force` the run ends sooner if every combination was tried.

    Args:
        study: The study.
        objective: Trains one trial.
        n_trials: Finished trials wanted.
        timeout: Seconds; None: none.
        callbacks: Called after each trial, as in `Study.optimize`.
        folder: Folder of the trials' checkpoints, which must stay where it is.

    Raises:
        SearchFailed: Three trials in a row failed with the same reason.
        RunStopped: A disk or a file server refused to read or write; the trial is queued again.
        StudyMoved: The file of the study, or `folder`, was removed or replaced meanwhile.
        KeyboardInterrupt: After the interrupted trial was queued again.
    """
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    monitor = HeartbeatMonitor()

    def may_begin() -> bool:
        early = time.monotonic() < deadline
        return early and _n_taken(study) < n_trials and not _has_no_more_values(study)

    def check_first(study: optuna.Study, trial: FrozenTrial) -> None:
        check_places()  # The other callbacks write, too.

    def stop_in_time(study: optuna.Study, trial: FrozenTrial) -> None:
        requeue_orphans(study, monitor)
        if interrupt.pending or not may_begin():
            study.stop()

    with (
        staying_in_place(study, folder) as check_places,
        stopping_at_storage_failure("the storage of the study"),
        DeferredInterrupt() as interrupt,
        sending_heartbeats(study, this_worker()),
    ):
        stopped: list[RunStopped] = []
        guarded = _guarded(objective, n_trials, interrupt, check_places, stopped)
        every = [check_first, *callbacks, stop_in_time, _stop_after_same_failures]
        requeue_orphans(study, monitor)
        while len(finished_trials(study)) < n_trials and not is_exhausted(study):
            if may_begin():
                _optimize(study, guarded, every)
            elif time.monotonic() >= deadline:
                return
            else:  # The last trials are with other workers, of which one may die.
                time.sleep(_POLL_SECONDS)
                requeue_orphans(study, monitor)
            interrupt.check()
            if stopped:  # Optuna has raised instead that the trial is finished.
                raise stopped[0]


def wait_for_running(study: optuna.Study) -> None:
    """Waits until no trial of a study is running; those of dead workers are queued again."""
    monitor = HeartbeatMonitor()
    while True:
        requeue_orphans(study, monitor)
        if not study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            return
        time.sleep(_POLL_SECONDS)


def is_exhausted(study: optuna.Study) -> bool:
    """Whether every combination of the space was tried to its end, also by other workers."""
    return _has_no_more_values(study) and not study.get_trials(
        deepcopy=False, states=(TrialState.RUNNING,)
    )


def _has_no_more_values(study: optuna.Study) -> bool:
    """Whether every combination of the space was drawn, and none of them is queued again."""
    waiting = (TrialState.WAITING,)
    return EXHAUSTED in study.user_attrs and not study.get_trials(deepcopy=False, states=waiting)


def _optimize(
    study: optuna.Study, objective: Objective, callbacks: Sequence[StudyCallback]
) -> None:
    """Runs trials until a callback stops the study, or a trial is lost to another worker."""
    try:
        study.optimize(objective, catch=(TrialError,), callbacks=callbacks)
    except (UpdateFinishedTrialError, ValueError, AssertionError) as error:
        if storage_failure(error) or not _is_lost_trial(error):
            raise
    except StudyMoved:  # Another study may be in its place.
        raise
    except (KeyboardInterrupt, RunStopped):
        requeue_own(study)
        raise


def _is_lost_trial(error: Exception) -> bool:
    """Whether a trial was ended by another worker, which took this one for dead."""
    texts = ("Cannot tell a ", "Should not reach")
    return isinstance(error, UpdateFinishedTrialError) or str(error).startswith(texts)


def _n_taken(study: optuna.Study) -> int:
    """Trials that are finished, running, or about to be queued again."""
    trials = study.get_trials(deepcopy=False)
    return _n_begun(trials) + n_being_requeued(trials)


def _n_begun(trials: Sequence[FrozenTrial]) -> int:
    return sum(counts(trial) or trial.state == TrialState.RUNNING for trial in trials)


def _guarded(
    objective: Objective,
    n_trials: int,
    interrupt: DeferredInterrupt,
    check_places: Callable[[], None],
    stopped: list[RunStopped],
) -> Objective:
    def run(trial: Trial) -> float | Sequence[float]:
        start = time.monotonic()
        try:
            with stopping_at_storage_failure("the storage of the study"):
                check_places()
                set_worker(trial)
                _refuse_surplus(trial, n_trials)
                with interrupt.allowed():
                    value = objective(trial)
        except StudyMoved:
            raise
        except (KeyboardInterrupt, RunStopped) as error:
            if isinstance(error, RunStopped):
                stopped.append(error)
            # A process that failed alone has ended the trial, before this one has lost it.
            with suppress(UpdateFinishedTrialError):
                trial.set_user_attr(INTERRUPTED, True)
            raise
        except (optuna.TrialPruned, TrialError):
            trial.set_user_attr(SECONDS, time.monotonic() - start)
            raise
        except Exception as error:  # The next run would end in the same way with the same values.
            trial.set_user_attr(ENDED_RUN, redact_url(str(error)))
            raise
        trial.set_user_attr(SECONDS, time.monotonic() - start)
        return value

    return run


def _refuse_surplus(trial: Trial, n_trials: int) -> None:
    """Ends a trial that another worker runs, too, or that is one too many."""
    trials = trial.study.get_trials(deepcopy=False)
    if is_duplicate(trials[trial.number], trials):
        trial.set_user_attr(SURPLUS, True)
        raise TrialError("another worker has queued the same trial")
    if _n_begun(trials[: trial.number]) >= n_trials:
        trial.set_user_attr(SURPLUS, True)
        trial.study.stop()
        raise TrialError("the study has all its trials")


def _stop_after_same_failures(study: optuna.Study, trial: FrozenTrial) -> None:
    if FAILURE not in trial.user_attrs:
        return
    reasons = [t.user_attrs.get(FAILURE) for t in finished_trials(study)[-_SAME_FAILURES:]]
    if len(reasons) == _SAME_FAILURES and len(set(reasons)) == 1:
        raise SearchFailed(
            f"{_SAME_FAILURES} trials in a row failed with the same reason: {reasons[0]}. Fix the "
            "cause and run the same command again; what has finished is kept"
        )
