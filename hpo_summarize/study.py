"""Opens and runs Optuna studies: storage, sampler, pruner, resume and the rules for stopping."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo_summarize.errors import SearchFailed, StudyError
from hpo_summarize.recipe import SearchSection
from hpo_summarize.recipe.registry import optuna_class
from hpo_summarize.redact import redact_url

Objective = Callable[[Trial], float | Sequence[float]]
StudyCallback = Callable[[optuna.Study, FrozenTrial], None]

# User attributes of a trial.
FAILURE = "failure"  # Why a trial ended in an error.
INTERRUPTED = "interrupted"  # The user stopped the run in the middle of this trial.
BEST_EPOCH = "best_epoch"

_SAME_FAILURES = 3  # As many failures in a row, with one reason, end a study.
_SQLITE_BUSY_SECONDS = 60


class TrialError(Exception):
    """Marks a trial of several objectives as failed; Optuna cannot mark it as pruned."""


def default_storage_url(output_dir: Path) -> str:
    """The SQLite file of a study inside its output folder."""
    return f"sqlite:///{output_dir / 'study.db'}"


def open_study(
    search: SearchSection, study_name: str, storage: str, directions: Sequence[str]
) -> optuna.Study:
    """Creates a study, or opens the one of this name to go on with it.

    Args:
        search: Names the sampler and the pruner; without a pruner nothing is pruned.
        study_name: Name in the storage.
        storage: URL of the storage.
        directions: `"maximize"` or `"minimize"` for each objective.

    Raises:
        StudyError: The storage cannot be reached, or its study has other directions.
    """
    shown = redact_url(storage)
    try:
        study = optuna.create_study(
            study_name=study_name,
            storage=_build_storage(storage),
            directions=directions,
            pruner=build_pruner(
                **search.pruner.model_dump() if search.pruner else {"name": "none"}
            ),
            load_if_exists=True,
        )
    except Exception as error:  # SQLAlchemy, its drivers and Optuna each raise their own.
        reason = str(error).replace(storage, shown).splitlines()[0]
        raise StudyError(
            f"the storage {shown} cannot be used: {reason}. Check the URL (sqlite:///file.db, "
            "postgresql+psycopg://user:password@host/database) and that its server runs"
        ) from None
    known = [direction.name.lower() for direction in study.directions]
    if known != list(directions):
        raise StudyError(
            f"the study '{study_name}' in {shown} was made with the directions {known}, and now "
            f"{list(directions)} are asked for; choose another --study_name"
        )
    sampler = search.sampler.model_dump()
    study.sampler = build_sampler(finished=len(finished_trials(study)), **sampler)
    return study


def _build_storage(url: str) -> optuna.storages.BaseStorage:
    options: dict[str, Any] = {}
    if url.startswith("sqlite"):
        options["connect_args"] = {"timeout": _SQLITE_BUSY_SECONDS}
    return optuna.storages.RDBStorage(url, engine_kwargs=options)


def build_sampler(
    name: str, seed: int | None, finished: int = 0, worker: int = 0, **arguments: Any
) -> optuna.samplers.BaseSampler:
    """A sampler by its short name; TPE models conditional parameters in groups.

    Args:
        name: A key of `recipe.registry.SAMPLERS`.
        seed: Seed of the study; None draws one.
        finished: Trials that the study holds already. A resumed study that began with the same
            seed again would repeat its first draws.
        worker: Number of this worker, from 0.
        arguments: Further arguments of the sampler's class.
    """
    if name == "tpe":
        arguments = {"multivariate": True, "group": True, **arguments}
    if name != "brute_force" or seed is not None:
        arguments["seed"] = derive_seed(seed, worker, finished)
    with warnings.catch_warnings():
        # `group` has been marked experimental since Optuna 2.8, and conditions need it.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna_class("sampler", name)(**arguments)


def derive_seed(seed: int | None, worker: int, finished: int) -> int | None:
    """A seed for the draws of one worker after so many trials; `seed` itself at the very start."""
    if seed is None or (worker == 0 and finished == 0):
        return seed
    return int(np.random.SeedSequence([seed, worker, finished]).generate_state(1)[0])


def build_pruner(name: str, **arguments: Any) -> optuna.pruners.BasePruner:
    """A pruner by its short name, a key of `recipe.registry.PRUNERS`."""
    return optuna_class("pruner", name)(**arguments)


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count towards `n_trials`: all that ended, but for interrupted ones."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    trials = study.get_trials(deepcopy=False, states=ended)
    return [trial for trial in trials if not trial.user_attrs.get(INTERRUPTED)]


def best_trials(study: optuna.Study, count: int = 1) -> list[FrozenTrial]:
    """The `count` best complete trials, best first; with several objectives the Pareto front."""
    if len(study.directions) > 1:
        return study.best_trials
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    return sorted(complete, key=lambda trial: (sign * trial.value, trial.number))[:count]


def require_complete(study: optuna.Study) -> None:
    """Checks that a study has a result.

    Raises:
        SearchFailed: No trial is complete; the message says what became of each.
    """
    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return
    fates = [
        f"  trial {trial.number}: {trial.user_attrs.get(FAILURE) or trial.state.name.lower()}"
        for trial in finished_trials(study)
    ]
    raise SearchFailed(
        "\n".join(
            [f"no trial of the study '{study.study_name}' came to its end:", *fates]
            + ["Mend the cause, or loosen the pruner, and run again with more trials"]
        )
    )


def enqueue_baseline(study: optuna.Study, values: dict[str, Any]) -> None:
    """Makes `values` the first trial of a study that has none."""
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial(values)


def run_study(
    study: optuna.Study,
    objective: Objective,
    n_trials: int,
    timeout: float | None = None,
    callbacks: Sequence[StudyCallback] = (),
) -> None:
    """Runs trials until the study holds `n_trials` finished ones, or `timeout` seconds are over.

    Trials of earlier runs count. A running trial is never cut off by the timeout. An interrupt
    (Ctrl-C) ends the run at once; the values of the trial that it cut off are tried again first
    when the study goes on.

    Raises:
        SearchFailed: Three trials in a row failed with the same reason.
        KeyboardInterrupt: After the cut-off trial was put back.
    """
    if len(finished_trials(study)) >= n_trials:
        return
    deadline = None if timeout is None else time.monotonic() + timeout

    def stop_when_done(study: optuna.Study, trial: FrozenTrial) -> None:
        late = deadline is not None and time.monotonic() >= deadline
        if late or len(finished_trials(study)) >= n_trials:
            study.stop()

    study.optimize(
        _interruptible(objective),
        catch=(TrialError,),
        callbacks=[*callbacks, stop_when_done, _stop_after_same_failures],
    )


def _interruptible(objective: Objective) -> Objective:
    def run(trial: Trial) -> float | Sequence[float]:
        try:
            return objective(trial)
        except KeyboardInterrupt:
            trial.set_user_attr(INTERRUPTED, True)
            trial.study.enqueue_trial(trial.params)
            raise

    return run


def _stop_after_same_failures(study: optuna.Study, trial: FrozenTrial) -> None:
    if FAILURE not in trial.user_attrs:
        return
    reasons = [t.user_attrs.get(FAILURE) for t in finished_trials(study)[-_SAME_FAILURES:]]
    if len(reasons) == _SAME_FAILURES and len(set(reasons)) == 1:
        raise SearchFailed(
            f"{_SAME_FAILURES} trials in a row failed with the same reason: {reasons[0]}. Mend the "
            "cause and run the same command again; what has finished is kept"
        )
