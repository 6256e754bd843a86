"""Trials whose worker died: found, marked, and put back with the same values."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

import optuna
import psutil
from optuna.storages._heartbeat import is_heartbeat_enabled
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo_summarize.attributes import (
    CONTINUES,
    ENDED_RUN,
    FAILURE,
    INTERRUPTED,
    SURPLUS,
    WORKER,
)
from hpo_summarize.study.heartbeats import BeatingJournal

# A trial gets its worker's name right after it is made; one without a name for longer is orphaned.
_NAMELESS_SECONDS = 30
# From the end of an interrupted trial until its values are queued; longer if the worker died then.
_PUTTING_BACK_SECONDS = 5
# The start of a process is read against the system's clock, which may be set meanwhile.
_CLOCK_SECONDS = 60


def this_worker() -> dict[str, Any]:
    """A name for this process that no other process has, now or later."""
    started = round(psutil.Process().create_time(), 2)
    return {"host": _host(), "pid": os.getpid(), "started": started}


def _host() -> str:
    """Where a process id means the same process: this machine, or this container on it.

    Containers on their host's network all have its name, and each counts its processes anew.
    """
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # Only Linux has it.
        return socket.gethostname()


def sign(trial: Trial) -> None:
    """Writes the name of this process to a trial that it is going to run."""
    trial.set_user_attr(WORKER, this_worker())


def put_back_orphans(study: optuna.Study) -> list[int]:
    """Puts back the trials whose worker died: while it ran them, or while it put them back.

    A worker of this machine is dead when its process is gone, one of another machine when it has
    given no sign of life for the grace period.

    Returns:
        The numbers of the trials that were put back, but for those of other machines in a database.
    """
    if is_heartbeat_enabled(study._storage):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            optuna.storages.fail_stale_trials(study)
    trials = study.get_trials(deepcopy=False)
    for trial in _left_out(trials):
        put_back(study, trial)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    return [t.number for t in running if _is_orphan(study, t) and abandon(study, t)]


def put_back_own(study: optuna.Study) -> None:
    """Puts back the trial that this process was at when it was interrupted."""
    me = this_worker()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        worker = trial.user_attrs.get(WORKER, {})
        if (worker.get("host"), worker.get("pid")) == (me["host"], me["pid"]):
            abandon(study, trial)


def put_back_interrupted(trial: Trial) -> None:
    """Puts back the trial that this process is at, and leaves it to Optuna to end it."""
    trial.set_user_attr(INTERRUPTED, True)
    put_back(trial.study, trial.study._storage.get_trial(trial._trial_id))


def abandon(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Marks a running trial as interrupted and puts its values back in the queue.

    Returns:
        Whether this call did so; False if another worker was faster.
    """
    storage = study._storage
    try:
        storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
        changed = storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except (optuna.exceptions.UpdateFinishedTrialError, RuntimeError):
        return False
    if changed:
        put_back(study, trial)
    return changed


def fail(study: optuna.Study, number: int, reason: str) -> None:
    """Ends a running trial as one that failed by its own values; it counts, and is not put back."""
    trial = study.get_trials(deepcopy=False)[number]
    if trial.state.is_finished():
        return
    study._storage.set_trial_user_attr(trial._trial_id, FAILURE, reason)
    # As a pruned trial it is known to the sampler; with several objectives Optuna cannot prune.
    state = TrialState.PRUNED if len(study.directions) == 1 else TrialState.FAIL
    study.tell(number, state=state)


def put_back(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues the values of an interrupted trial, once; who takes them goes on with its checkpoint.

    A second signal in the middle of an interrupt comes here again with the same trial.
    """
    if trial.number in _continued(study.get_trials(deepcopy=False)):
        return
    queued = trial.system_attrs.get("fixed_params", {})  # Not all of them may be sampled yet.
    study.enqueue_trial({**queued, **trial.params}, user_attrs={CONTINUES: trial.number})
    # Another worker may have come at the same instant; the trial that was queued first stays.
    withdraw_doubles(study)


def withdraw_doubles(study: optuna.Study) -> None:
    """Takes back what several workers have queued at once."""
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == TrialState.WAITING and is_double(trial, trials):
            _withdraw(study, trial)


def is_double(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether an earlier trial goes on with the same interrupted one, or was queued like this."""
    queued = _queued_as(trial)
    return queued is not None and any(
        _queued_as(other) == queued for other in trials[: trial.number]
    )


def _queued_as(trial: FrozenTrial) -> Any:
    """The interrupted trial that it goes on with, or the values that it was queued with."""
    return trial.user_attrs.get(CONTINUES, trial.system_attrs.get("fixed_params") or None)


def _withdraw(study: optuna.Study, trial: FrozenTrial) -> None:
    with suppress(optuna.exceptions.UpdateFinishedTrialError):  # Another worker was faster.
        study._storage.set_trial_user_attr(trial._trial_id, SURPLUS, True)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _left_out(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that were interrupted, and whose worker died before it could queue their values.

    Heartbeats fail a trial without marking it; an error that ended the run leaves its own mark.
    """
    continued, now = _continued(trials), datetime.now()
    marks = {FAILURE, SURPLUS, ENDED_RUN}
    return [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL
        and trial.number not in continued
        and (INTERRUPTED in trial.user_attrs or WORKER in trial.user_attrs)
        and not marks & trial.user_attrs.keys()
        and not _is_just_ended(trial, now)
    ]


def _is_just_ended(trial: FrozenTrial, now: datetime) -> bool:
    """Whether its worker, if it lives, is still about to queue its values."""
    ended = trial.datetime_complete
    return ended is not None and abs(now - ended) < timedelta(seconds=_PUTTING_BACK_SECONDS)


def n_being_put_back(trials: Sequence[FrozenTrial]) -> int:
    """Interrupted trials that another worker has ended and is about to queue.

    Without them a third worker would see room for one more trial, and draw new values for it.
    """
    continued, now = _continued(trials), datetime.now()
    return sum(
        INTERRUPTED in trial.user_attrs
        and trial.number not in continued
        and SURPLUS not in trial.user_attrs
        and _is_just_ended(trial, now)
        for trial in trials
    )


def _continued(trials: Sequence[FrozenTrial]) -> set[int]:
    return {t.user_attrs[CONTINUES] for t in trials if CONTINUES in t.user_attrs}


def _is_orphan(study: optuna.Study, trial: FrozenTrial) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:
        start = trial.datetime_start or datetime.now()
        return datetime.now() - start > timedelta(seconds=_NAMELESS_SECONDS)
    if worker["host"] != _host():
        storage = study._storage
        return isinstance(storage, BeatingJournal) and storage.is_silent(worker, this_worker())
    try:
        process = psutil.Process(worker["pid"])
        # A dead process that its parent has not asked about yet still has its number.
        dead = process.status() == psutil.STATUS_ZOMBIE
        return dead or abs(process.create_time() - worker["started"]) > _CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return True
