"""The processes of a launch as a group: rendezvous, broadcasts, errors that all of them raise."""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch.distributed import DistError, Store
from torch.distributed.rendezvous import rendezvous

from hpo_summarize.errors import HpoError, LaunchError, ProcessError, common_failure
from hpo_summarize.launch.signals import detect_lost_process
from hpo_summarize.launch.workers import is_launched_with_others

T = TypeVar("T")

_RENDEZVOUS_SECONDS = 600
_POLL_SECONDS = 0.1


def join_group() -> PartialState:
    """Makes the processes of one launch a group; to be called before anything asks for devices.

    `PartialState()` of accelerate 1.15 forms none on CPUs unless it is set to use one, and
    every process would then do all of the work and write over the others. The group is left when
    the interpreter ends.

    Raises:
        LaunchError: A process is missing, has no device of its own, or has one of another kind.
    """
    several = is_launched_with_others()
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (
        several and not torch.accelerator.is_available()
    )
    if not several or torch.distributed.is_initialized():
        return PartialState(cpu=on_cpu)
    device = "cpu" if on_cpu else _accelerator()
    try:
        store, rank, count = next(
            rendezvous("env://", timeout=timedelta(seconds=_RENDEZVOUS_SECONDS))
        )
        _check_devices(store, rank, count, device)
    except DistError as error:
        raise LaunchError(f"the rendezvous of this launch failed ({error})") from None
    atexit.register(_leave_group)
    return PartialState(cpu=on_cpu, store=store, rank=rank, world_size=count)


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


def _check_devices(store: Store, rank: int, count: int, device: str) -> None:
    """Waits for all processes, and refuses a group of CPUs and GPUs.

    gloo and NCCL would wait for each other for half an hour.
    """
    store.set(f"device {rank}", device)
    names = [f"device {other}" for other in range(count)]
    deadline = time.monotonic() + _RENDEZVOUS_SECONDS
    while not store.check(names):  # In `store.wait` no signal would be handled.
        if time.monotonic() > deadline:
            raise LaunchError(
                f"not all {count} processes of this launch have started within "
                f"{_RENDEZVOUS_SECONDS // 60} minutes; see the messages of the others"
            )
        time.sleep(_POLL_SECONDS)
    devices = [store.get(name).decode() for name in names]
    if len(set(devices)) > 1:
        found = ", ".join(f"process {rank} on {device}" for rank, device in enumerate(devices))
        failure = LaunchError(
            f"all processes must work on one kind of device, and here it would be {found}; fix the "
            "driver where a GPU is not found, or set ACCELERATE_USE_CPU=1 for all of them"
        )
        failure.shared = True
        raise failure


def on_main(decide: Callable[[], T]) -> T:
    """Runs `decide` on the main process; every process gets its result, or its exception.

    Every process of the group must call this at the same point, since it waits for all of them.
    With one process it is a plain call.

    Args:
        decide: Function that is called on the main process only; its result or exception must be
            picklable.

    Raises:
        BaseException: Whatever `decide` raised, on every process.
        ProcessError: Another process is gone.
    """
    state = PartialState()
    if state.num_processes == 1:
        return decide()
    result: Any = None
    failure: BaseException | None = None
    if state.is_main_process:
        try:
            result = decide()
        except BaseException as error:  # noqa: B036 - the other processes raise any kind, too.
            failure = error
    try:
        with detect_lost_process():
            result, failure = broadcast_object_list([result, failure])
    except ProcessError as lost:
        raise failure or lost from None
    if failure is None:
        return result
    if isinstance(failure, HpoError):
        failure.shared = True
    raise failure


def broadcast(value: Any = None) -> Any:
    """The picklable value that the main process has; what the others pass is ignored.

    Raises:
        BaseException: As with `on_main`, which the main process may call while the others are here.
    """
    return on_main(lambda: value)


def on_all(act: Callable[[], T]) -> T:
    """Runs `act` on every process, and raises on all of them where one has failed.

    Every process of the group must call this at the same point, and `act` must wait for no other
    process. With one process it is a plain call.

    Returns:
        The result of `act` on this process.

    Raises:
        HpoError: What `act` raised, where that was the same on every process.
        RunStopped: `act` has raised an `HpoError` on some processes; names them.
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
    with detect_lost_process():
        reports = gather_object([None if own is None else (str(own), own.exit_status)])
    if failure := common_failure(reports, own):
        raise failure
    return result
