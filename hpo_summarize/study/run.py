"""Opens and runs studies: resume, totals over several workers, and the rules for stopping."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
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
    stopping_at_storage_failure,
    storage_failure,
)
from hpo_summarize.launch.signals import DeferredInterrupt
from hpo_summarize.redact import redact_url
from hpo_summarize.study.heartbeats import Watch, beating
from hpo_summarize.study.location import find_study, staying_in_place
from hpo_summarize.study.recovery import (
    is_double,
    n_being_put_back,
    put_back_interrupted,
    put_back_orphans,
    put_back_own,
    sign,
    this_worker,
    withdraw_doubles,
)
from hpo_summarize.study.samplers import SeededAtFirstTrial, build_pruner, build_sampler
from hpo_summarize.study.storage import build_storage, retry_first_start
from hpo_summarize.study.trials import counts, finished_trials
from hpo_summarize.study.user_attrs import (
    BEGUN,
    EARLIER,
    ENDED_RUN,
    EXHAUSTED,
    FAILURE,
    SECONDS,
    SURPLUS,
)
from hpo_summarize.study.warm_start import EarlierTrials, WarmStart

Objective = Callable[[Trial], float | Sequence[float]]
StudyCallback = Callable[[optuna.Study, FrozenTrial], None]

_BASELINE_SECONDS = 10  # A worker waits so long for the one that creates the study.
_WAIT_SECONDS = 1  # Between looks at the last trials of other workers.
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
    """Creates a study, or opens the one of this name to go on with it.

    Several workers may do so at the same instant: one of them creates it.

    Args:
        search: Names the sampler and the pruner; without a pruner nothing is pruned.
        study_name: Name in the storage.
        storage: URL of the storage.
        directions: `"maximize"` or `"minimize"` for each objective.
        baselines: Values of the first trials; one that was begun takes those that are new to it.
        worker: Number of this worker among those that start together.
        n_epochs: Most epochs that a trial can have.
        warm_start: Earlier trials that a new study begins with.
        opened: The storage at this URL, where it is open already.

    Raises:
        StudyError: The storage cannot be reached, its study has other directions, or the earlier
            trials cannot be taken.
    """
    earlier = None if warm_start is None else _read_earlier(warm_start, study_name, storage)
    study, created = retry_first_start(
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
        _begin_with(study, baselines, earlier)
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


def _read_earlier(warm_start: WarmStart, study_name: str, storage: str) -> EarlierTrials | None:
    """The trials for a study that is not begun, read before it is made; None for one that is.

    Nothing is made where they cannot be had.
    """
    study = find_study(storage, study_name)
    return None if study is not None and _is_begun(study) else warm_start.read()


def _begin_with(
    study: optuna.Study, baselines: Sequence[Mapping[str, Any]], earlier: EarlierTrials | None
) -> None:
    """Queues the baselines as the first trials, and adds the earlier ones to a new study.

    Several workers may do so at once, and what one could not finish, the next one does.
    """
    for values in baselines:
        study.enqueue_trial(dict(values), skip_if_exists=True)
    withdraw_doubles(study)
    if not _is_begun(study):
        if earlier is not None:
            earlier.add_to(study)
        study.set_user_attr(BEGUN, True)


def _is_begun(study: optuna.Study) -> bool:
    """Whether all first trials are there; a worker runs none before."""
    return BEGUN in study.user_attrs or any(
        trial.state != TrialState.WAITING and not trial.user_attrs.keys() & {EARLIER, SURPLUS}
        for trial in study.get_trials(deepcopy=False)
    )


def _wait_until_begun(study: optuna.Study) -> None:
    """Leaves the beginning to the worker that has made the study, as long as that gets on.

    To go on too soon does no harm, and leaves trials behind that are withdrawn.
    """
    count, latest = -1, time.monotonic()
    while not _is_begun(study) and time.monotonic() - latest < _BASELINE_SECONDS:
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
    together. A running trial is never cut off by the timeout. An interrupt (Ctrl-C) ends the run at
    once; the values of a trial that was cut off, by that or by a crash, are tried again first. With
    `brute_force` it ends sooner where every combination was tried.

    Args:
        study: The study.
        objective: Trains one trial.
        n_trials: Finished trials wanted.
        timeout: Seconds; None: none.
        callbacks: Called after each trial, as in `Study.optimize`.
        folder: Folder of the trials' checkpoints, which must stay where it is.

    Raises:
        SearchFailed: Three trials in a row failed with the same reason.
        RunStopped: A disk or a file server refused to read or write; the trial was put back.
        StudyMoved: The file of the study, or `folder`, was removed or replaced meanwhile.
        KeyboardInterrupt: After the cut-off trial was put back.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    watch = Watch()

    def may_begin() -> bool:
        late = deadline is not None and time.monotonic() >= deadline
        return not late and _taken(study) < n_trials and not _is_given_out(study)

    def stop_when_taken(study: optuna.Study, trial: FrozenTrial) -> None:
        put_back_orphans(study, watch)
        if interrupt.pending or not may_begin():
            study.stop()

    with (
        staying_in_place(study, folder) as check_places,
        stopping_at_storage_failure("the storage of the study"),
        DeferredInterrupt() as interrupt,
        beating(study, this_worker()),
    ):
        guarded = _guarded(objective, n_trials, interrupt, check_places)
        # First of all callbacks: the others write, too.
        callbacks = [lambda study, trial: check_places(), *callbacks]
        stops = [stop_when_taken, _stop_after_same_failures]
        put_back_orphans(study, watch)
        while len(finished_trials(study)) < n_trials and not is_exhausted(study):
            if may_begin():
                _optimize(study, guarded, [*callbacks, *stops])
            elif deadline is not None and time.monotonic() >= deadline:
                return
            else:
                # The last trials are with other workers; one of them may die and leave its trial.
                time.sleep(_WAIT_SECONDS)
                put_back_orphans(study, watch)
            interrupt.check()


def wait_for_running(study: optuna.Study) -> None:
    """Waits until no worker is at a trial of a study; those of dead workers are put back."""
    watch = Watch()
    while True:
        put_back_orphans(study, watch)
        if not study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            return
        time.sleep(_WAIT_SECONDS)


def is_exhausted(study: optuna.Study) -> bool:
    """Whether every combination of the space was tried to its end, also by other workers."""
    return _is_given_out(study) and not study.get_trials(
        deepcopy=False, states=(TrialState.RUNNING,)
    )


def _is_given_out(study: optuna.Study) -> bool:
    """Whether the space has no further combination, and none was put back to be tried again."""
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
    except KeyboardInterrupt:
        put_back_own(study)
        raise


def _is_lost_trial(error: Exception) -> bool:
    """Whether a trial was ended by another worker, which took this one for dead."""
    texts = ("Cannot tell a ", "Should not reach")
    return isinstance(error, UpdateFinishedTrialError) or str(error).startswith(texts)


def _taken(study: optuna.Study) -> int:
    """Trials that are finished, that a worker is at, or that one is just putting back."""
    trials = study.get_trials(deepcopy=False)
    return sum(counts(t) or t.state == TrialState.RUNNING for t in trials) + n_being_put_back(
        trials
    )


def _guarded(
    objective: Objective,
    n_trials: int,
    interrupt: DeferredInterrupt,
    check_places: Callable[[], None],
) -> Objective:
    def run(trial: Trial) -> float | Sequence[float]:
        try:
            with stopping_at_storage_failure("the storage of the study"):
                check_places()
                sign(trial)
                _refuse_surplus(trial, n_trials)
                with interrupt.allowed():
                    return _timed(objective, trial)
        except (KeyboardInterrupt, RunStopped):
            put_back_interrupted(trial)
            raise
        except (optuna.TrialPruned, TrialError):
            raise
        except Exception as error:  # The next run would end in the same way with the same values.
            trial.set_user_attr(ENDED_RUN, redact_url(str(error)))
            raise

    return run


def _refuse_surplus(trial: Trial, n_trials: int) -> None:
    """Ends a trial that another worker does, or that is one too many."""
    trials = trial.study.get_trials(deepcopy=False)
    if is_double(trials[trial.number], trials):
        trial.set_user_attr(SURPLUS, True)
        raise TrialError("another worker has queued the same trial")
    if _comes_too_late(trial, n_trials):
        trial.set_user_attr(SURPLUS, True)
        trial.study.stop()
        raise TrialError("the study has all its trials")


def _timed(objective: Objective, trial: Trial) -> float | Sequence[float]:
    """The value of a trial, whose duration is noted with it."""
    start = time.monotonic()
    try:
        value = objective(trial)
    except (optuna.TrialPruned, TrialError):
        trial.set_user_attr(SECONDS, time.monotonic() - start)
        raise
    trial.set_user_attr(SECONDS, time.monotonic() - start)
    return value


def _comes_too_late(trial: Trial, n_trials: int) -> bool:
    """Whether the trials before this one, finished or running, are all that is wanted."""
    before = trial.study.get_trials(deepcopy=False)[: trial.number]
    return sum(counts(t) or t.state == TrialState.RUNNING for t in before) >= n_trials


def _stop_after_same_failures(study: optuna.Study, trial: FrozenTrial) -> None:
    if FAILURE not in trial.user_attrs:
        return
    reasons = [t.user_attrs.get(FAILURE) for t in finished_trials(study)[-_SAME_FAILURES:]]
    if len(reasons) == _SAME_FAILURES and len(set(reasons)) == 1:
        raise SearchFailed(
            f"{_SAME_FAILURES} trials in a row failed with the same reason: {reasons[0]}. Mend the "
            "cause and run the same command again; what has finished is kept"
        )
