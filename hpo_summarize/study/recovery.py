"""Trials whose worker died: found, marked, and put back with the same values."""

from __future__ import annotations

import os
import socket
from datetime import datetime, timedelta
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial, Trial, TrialState

from hpo_summarize.attributes import CONTINUES, INTERRUPTED, WORKER

# A trial gets its worker's name right after it is made; one without a name for longer is orphaned.
_NAMELESS_SECONDS = 30


def this_worker() -> dict[str, Any]:
    """A name for this process that no other process has, now or later."""
    started = round(psutil.Process().create_time(), 2)
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": started}


def sign(trial: Trial) -> None:
    """Writes the name of this process to a trial that it is going to run."""
    trial.set_user_attr(WORKER, this_worker())


def put_back_orphans(study: optuna.Study) -> list[int]:
    """Puts back the running trials whose process on this machine is gone.

    Those of other machines are left to the heartbeats of the storage.

    Returns:
        The numbers of the trials that were put back.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial.number for trial in running if _is_orphan(trial) and abandon(study, trial)]


def put_back_own(study: optuna.Study) -> None:
    """Puts back the trial that this process was at when it was interrupted."""
    me = this_worker()
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if trial.user_attrs.get(WORKER) == me:
            abandon(study, trial)


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


def put_back(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queues the values of an interrupted trial; whoever takes them goes on with its checkpoint."""
    queued = trial.system_attrs.get("fixed_params", {})  # Not all of them may be sampled yet.
    study.enqueue_trial({**queued, **trial.params}, user_attrs={CONTINUES: trial.number})


def _is_orphan(trial: FrozenTrial) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:
        start = trial.datetime_start or datetime.now()
        return datetime.now() - start > timedelta(seconds=_NAMELESS_SECONDS)
    if worker["host"] != socket.gethostname():
        return False
    try:
        started = round(psutil.Process(worker["pid"]).create_time(), 2)
    except psutil.NoSuchProcess:
        return True
    return started != worker["started"]
