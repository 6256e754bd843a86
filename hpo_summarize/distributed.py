"""One process decides, every process acts: the only place that broadcasts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

# A signal that ended another process first comes to this one within that time.
SIGNAL_SECONDS = 2

T = TypeVar("T")


def join_group() -> None:
    """Makes the processes of one launch a group; to be called before anything asks for devices.

    `PartialState()` of accelerate 1.15 forms none on CPUs unless it is told that it is on one, and
    every process would then do all of the work and write over the others.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = several and not torch.accelerator.is_available()
    PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or on_cpu)


def on_main(decide: Callable[[], T]) -> T:
    """Runs `decide` on the main process; every process gets its result, or its exception.

    Every process of the group must call this at the same point, since it waits for all of them.
    With one process it is a plain call.

    Args:
        decide: Called on the main process only; its result or exception must be picklable.

    Raises:
        BaseException: Whatever `decide` raised, on every process.
    """
    state = PartialState()
    if state.num_processes == 1:
        return decide()
    outcome: list = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = decide()
        except BaseException as error:  # noqa: B036 - the other processes must learn of any kind.
            outcome[1] = error
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        failure.told_by_main = not state.is_main_process
        raise failure
    return result


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exchange broke because a process at its other end is gone."""
    text = str(error)
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
