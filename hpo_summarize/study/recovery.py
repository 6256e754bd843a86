"""Trials whose worker died: found, marked, and put back with the same values."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo_summarize.launch.workers import start_of
from hpo_summarize.study import heartbeats
from hpo_summarize.study.heartbeats import Watch, sign_of_life
from hpo_summarize.study.user_attrs import (
    CONTINUES,
    EARLIER,
    ENDED_RUN,
    FAILURE,
    INTERRUPTED,
    SURPLUS,
    WORKER,
)

# A trial gets its worker's name right after it is made; one without a name for longer is orphaned.
_NAMELESS_SECONDS = 30


def this_worker() -> dict[str, Any]:
    """A name for this process that no other process has, now or later."""
    return {"host": _host(), "pid": os.getpid(), "started": start_of(os.getpid())}


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


def put_back_orphans(study: optuna.Study, watch: Watch | None = None) -> list[int]:
    """Puts back the trials whose worker died: while it ran them, or while it put them back.

    A worker of this machine is dead when its process is gone, one of another machine when it has
    given no sign of life for the grace period.

    Args:
        study: The study.
        watch: What this process has seen of it so far. Default: nothing yet.

    Returns:
        The numbers of the trials that were put back.
    """
    watch = watch or Watch()
    trials = study.get_trials(deepcopy=False)
    for trial in _left_out(trials):
        put_back(study, trial)
    running = [trial for trial in trials if trial.state == TrialState.RUNNING]
    return [t.number for t in running if _is_orphan(study, t, watch) and abandon(study, t)]


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
    is_copy = EARLIER in trial.user_attrs  # The worker that was adding it is gone.
    if is_copy or trial.number in _continued(study.get_trials(deepcopy=False)):
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
            withdraw(study, trial)


def is_double(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> bool:
    """Whether an earlier trial goes on with the same interrupted one, or was queued like this."""
    queued = _queued_as(trial)
    return queued is not None and any(
        _queued_as(other) == queued for other in trials[: trial.number]
    )


def _queued_as(trial: FrozenTrial) -> Any:
    """The interrupted trial that it goes on with, or the values that it was queued with."""
    return trial.user_attrs.get(CONTINUES, trial.system_attrs.get("fixed_params") or None)


def withdraw(study: optuna.Study, trial: FrozenTrial) -> None:
    """Fails a trial that another worker has queued or added, too."""
    with suppress(optuna.exceptions.UpdateFinishedTrialError):  # Another worker was faster.
        study._storage.set_trial_user_attr(trial._trial_id, SURPLUS, True)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _left_out(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that were interrupted, and whose values are not queued yet.

    Their worker is about to queue them, or died before it could. An earlier version failed trials
    by heartbeats, without marking them; an error that ended the run leaves its own mark.
    """
    continued = _continued(trials)
    marks = {FAILURE, SURPLUS, ENDED_RUN, EARLIER}
    return [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL
        and trial.number not in continued
        and (INTERRUPTED in trial.user_attrs or WORKER in trial.user_attrs)
        and not marks & trial.user_attrs.keys()
    ]


def n_being_put_back(trials: Sequence[FrozenTrial]) -> int:
    """Interrupted trials whose values some worker is about to queue.

    Without them another worker would see room for one more trial, and draw new values for it.
    """
    return len(_left_out(trials))


def _continued(trials: Sequence[FrozenTrial]) -> set[int]:
    return {t.user_attrs[CONTINUES] for t in trials if CONTINUES in t.user_attrs}


def _is_orphan(study: optuna.Study, trial: FrozenTrial, watch: Watch) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:
        return watch.seconds_unchanged(trial.number, None) > _NAMELESS_SECONDS
    if worker["host"] == _host():
        return _is_gone(worker)
    sign = sign_of_life(study._storage, trial)
    silent = watch.seconds_unchanged(trial.number, sign)
    return sign is not None and silent > heartbeats.GRACE_SECONDS


def _is_gone(worker: Mapping[str, Any]) -> bool:
    """Whether the process of a worker of this machine has ended."""
    try:
        # A dead process that its parent has not asked about yet still has its number.
        dead = psutil.Process(worker["pid"]).status() == psutil.STATUS_ZOMBIE
        return dead or start_of(worker["pid"]) != worker["started"]
    except psutil.NoSuchProcess:
        return True
