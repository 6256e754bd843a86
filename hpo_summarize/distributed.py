"""One process decides, every process acts, all fail together: the only place that broadcasts."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from hpo_summarize.errors import HpoError, LaunchError, common_failure
from hpo_summarize.roll_call import call_roll
from hpo_summarize.workers.launch import is_launched_with_others

T = TypeVar("T")

# A signal that ended another process first comes to this one within that time.
SIGNAL_SECONDS = 2


def join_group() -> PartialState:
    """Makes the processes of one launch a group; to be called before anything asks for devices.

    `PartialState()` of accelerate 1.15 forms none on CPUs unless it is told that it is on one, and
    every process would then do all of the work and write over the others. The group is left when
    the interpreter ends.

    Raises:
        HpoError: A process of the launch has failed already, or has no device of its own.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (
        several and not torch.accelerator.is_available()
    )
    if not is_launched_with_others() or torch.distributed.is_initialized():
        return PartialState(cpu=on_cpu)
    store = call_roll("cpu" if on_cpu else _accelerator())
    state = PartialState(cpu=on_cpu)
    del store  # Without a launcher the group has had it from here.
    atexit.register(_leave_group)
    return state


def _leave_group() -> None:
    """With torch 2.13 and gloo a process that is still in its group may abort when it ends."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _accelerator() -> str:
    """The kind of device of this process, which two cannot share in a group."""
    count, wanted = torch.accelerator.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if wanted > count:
        raise LaunchError(
            f"{wanted} processes were started on this machine to work together, and each needs a "
            f"GPU of its own: there are {count}; start as many (--num_processes {count})"
        )
    return str(torch.accelerator.current_accelerator())


def on_main(decide: Callable[[], T]) -> T:
    """Runs `decide` on the main process; every process gets its result, or its exception.

    Every process of the group must call this at the same point, since it waits for all of them.
    With one process it is a plain call.

    Args:
        decide: Function that is called on the main process only; its result or exception must be
            picklable.

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
        if isinstance(failure, HpoError):
            failure.shared = True
        raise failure
    return result


def tell(message: Any) -> None:
    """Gives a picklable message to the other processes; the main one alone calls it.

    Each of them must be in `hear`, or come to it.
    """
    on_main(lambda: message)


def hear() -> Any:
    """The next message of the main process; every other one must call it."""
    return on_main(_only_on_main)


def _only_on_main() -> NoReturn:
    raise AssertionError("the main process tells, and the others alone hear")


def on_all(act: Callable[[], T]) -> T:
    """Runs `act` on every process, and goes on only where it has succeeded on all of them.

    Every process of the group must call this at the same point, and `act` must wait for no other
    process. With one process it is a plain call.

    Returns:
        The result of `act` on this process.

    Raises:
        HpoError: What `act` raised, where that was the same on every process.
        ProcessError: `act` has raised an `HpoError` on some processes; names them.
    """
    if PartialState().num_processes == 1:
        return act()
    result: Any = None
    own = None
    try:
        result = act()
    except HpoError as error:
        own = error
    join_group()  # Training arguments that were refused have left no state.
    reports = gather_object([None if own is None else (str(own), own.exit_status)])
    if failure := common_failure(reports, own):
        raise failure
    return result


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exchange broke because a process at its other end is gone."""
    text = str(error)
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)
