"""Trials that were interrupted, or whose worker died, are queued again with the same values."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import optuna
import psutil
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo_summarize.launch.workers import start_of
from hpo_summarize.study import heartbeats
from hpo_summarize.study.heartbeats import HeartbeatMonitor, last_heartbeat
from hpo_summarize.study.user_attrs import (
    CONTINUES,
    EARLIER,
    ENDED_RUN,
    FAILURE,
    INTERRUPTED,
    SURPLUS,
    WORKER,
)

# A trial is given its worker right after it is made; one without for longer is an orphan.
NO_WORKER_SECONDS = 30


def this_worker() -> dict[str, Any]:
    """What identifies this process: no other one has the same, now or later."""
    return {"host": _host(), "pid": os.getpid(), "started": start_of(os.getpid())}


def _host() -> str:
    """Where a process id means the same process: this machine, or this container on it.

    Containers on their host's network all have its name, and each counts its processes anew.
    """
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # Only Linux has it.
        return socket.gethostname()


def set_worker(trial: Trial) -> None:
    """Records that this process runs a trial."""
    trial.set_user_attr(WORKER, this_worker())


def requeue_orphans(study: optuna.Study, monitor: HeartbeatMonitor | None = None) -> list[int]:
    """Queues again the trials whose worker died: while it ran them, or while it queued them again.

    A worker of this machine is dead when its process is gone, one of another machine when its
    heartbeat has not changed for the grace period.

    Args:
        study: The study.
        monitor: The heartbeats that this process has seen so far. Default: none.

    Returns:
        The numbers of the trials that were running.
    """
    seen = monitor or HeartbeatMonitor()
    return _requeue_where(study, lambda trial: _is_orphan(study, trial, seen))


def requeue_own(study: optuna.Study) -> None:
    """Queues again the trial in which this process was interrupted."""
    me = this_worker()
    _requeue_where(study, lambda trial: trial.user_attrs.get(WORKER) == me)


def _requeue_where(study: optuna.Study, has_ended: Callable[[FrozenTrial], bool]) -> list[int]:
    trials = study.get_trials(deepcopy=False)
    for trial in _not_yet_requeued(trials):
        _enqueue(study, trial)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    return [t.number for t in running if has_ended(t) and requeue_running(study, t)]


def requeue_running(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Marks a running trial as interrupted and queues its values again.

    Returns:
        Whether this call did so; False if another worker was faster.
    """
    storage = study._storage
    try:
        storage.set_trial_user_attr(trial._trial_id, INTERRUPTED, True)
        changed = storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except (UpdateFinishedTrialError, RuntimeError):
        return False
    if changed:
        _enqueue(study, trial)
    return changed


def fail(study: optuna.Study, number: int, reason: str) -> None:
    """Ends a running trial as one that failed by its values; it counts, and is not queued again."""
    trial = study.get_trials(deepcopy=False)[number]
    if trial.state.is_finished():
        return
    study._storage.set_trial_user_attr(trial._trial_id, FAILURE, reason)
    # As a pruned trial it is known to the sampler; with several objectives Optuna cannot prune.
    state = TrialState.PRUNED if len(study.directions) == 1 else TrialState.FAIL
    study.tell(number, state=state)


def _enqueue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues the values of an interrupted trial, once; their next trial resumes its checkpoint."""
    is_copy = EARLIER in trial.user_attrs  # The worker that was adding it died.
    if is_copy or trial.number in _continued(study.get_trials(deepcopy=False)):
        return
    queued = trial.system_attrs.get("fixed_params", {})  # Not all of them may be sampled yet.
    study.enqueue_trial({**queued, **trial.params}, user_attrs={CONTINUES: trial.number})
    withdraw_duplicates(study)  # Another worker may have come at the same instant.


def withdraw_duplicates(study: optuna.Study) -> None:
    """Of trials that several workers have queued at once, leaves the first."""
    trials = study.get_trials(deepcopy=False)
    for trial in trials:
        if trial.state == TrialState.WAITING and is_duplicate(trial, trials):
            withdraw(study, trial)


def is_duplicate(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether an earlier trial continues the same interrupted one, or was queued like this."""
    queued = _queued_as(trial)
    return queued is not None and any(
        _queued_as(other) == queued for other in trials[: trial.number]
    )


def _queued_as(trial: FrozenTrial) -> Any:
    """The interrupted trial that it continues, or the values that it was queued with."""
    return trial.user_attrs.get(CONTINUES, trial.system_attrs.get("fixed_params") or None)


def withdraw(study: optuna.Study, trial: FrozenTrial) -> None:
    """Fails a trial that another worker has queued or added, too."""
    with suppress(UpdateFinishedTrialError):  # Another worker was faster.
        study._storage.set_trial_user_attr(trial._trial_id, SURPLUS, True)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _not_yet_requeued(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Interrupted trials whose worker is about to queue them again, or died before it could.

    An earlier version failed trials by heartbeats, without marking them.
    """
    continued = _continued(trials)
    marks = {FAILURE, SURPLUS, ENDED_RUN, EARLIER}
    return [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL
        and trial.number not in continued
        and trial.user_attrs.keys() & {INTERRUPTED, WORKER}
        and not trial.user_attrs.keys() & marks
    ]


def n_being_requeued(trials: Sequence[FrozenTrial]) -> int:
    """Interrupted trials that some worker is about to queue again.

    Without them another worker would see room for one more trial, and draw new values for it.
    """
    return len(_not_yet_requeued(trials))


def _continued(trials: Sequence[FrozenTrial]) -> set[int]:
    return {t.user_attrs[CONTINUES] for t in trials if CONTINUES in t.user_attrs}


def _is_orphan(study: optuna.Study, trial: FrozenTrial, monitor: HeartbeatMonitor) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:
        return monitor.seconds_unchanged(trial.number, None) > NO_WORKER_SECONDS
    if worker["host"] == _host():
        return _has_ended(worker)
    heartbeat = last_heartbeat(study._storage, trial)
    unchanged = monitor.seconds_unchanged(trial.number, heartbeat)
    return heartbeat is not None and unchanged > heartbeats.GRACE_SECONDS


def _has_ended(worker: Mapping[str, Any]) -> bool:
    """Whether the process of a worker of this machine has ended."""
    try:
        # A dead process that its parent has not waited for yet still has its number.
        dead = psutil.Process(worker["pid"]).status() == psutil.STATUS_ZOMBIE
        return dead or start_of(worker["pid"]) != worker["started"]
    except psutil.NoSuchProcess:
        return True
