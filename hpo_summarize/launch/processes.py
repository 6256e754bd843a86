"""The processes of a launch as a group: rendezvous, broadcasts, errors that all of them raise."""

from __future__ import annotations

import atexit
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env
from torch.distributed import DistError, TCPStore

from hpo_summarize.errors import HpoError, LaunchError, common_failure
from hpo_summarize.launch.workers import is_launched_with_others

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
    reports = gather_object([None if own is None else (str(own), own.exit_status)])
    if failure := common_failure(reports, own):
        raise failure
    return result


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exchange broke because a process at its other end is gone."""
    text = str(error)
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


_LOOK_SECONDS = 0.1
_GROUP_SECONDS = 1800  # What torch itself waits for the last process of a group.
# A process that failed waits so long for the others: they may still be loading libraries.
_FAILED_SECONDS = 30
_LEAVE_SECONDS = 5

Answer = dict[str, Any]


def key(name: str) -> str:
    """A key for this start of the group; the store outlives a restart by its launcher."""
    return f"hpo_summarize/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{name}"


def connect(seconds: float, host: bool = False) -> TCPStore:
    """A connection to the store of this launch.

    Args:
        seconds: To wait for it.
        host: Whether this process keeps the store, where the launcher has none.

    Raises:
        OSError: It was not there in time.
        DistError: It went away meanwhile.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    host = host and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not host:
        _wait_for(address, port, seconds)
    return TCPStore(
        address,
        port,
        is_master=host,
        wait_for_workers=False,
        multi_tenant=True,  # The group will have its own store at the same address.
        timeout=timedelta(seconds=seconds),
    )


def _wait_for(address: str, port: int, seconds: float) -> None:
    """Waits in a way that Ctrl-C can end, and without torch's reports of every attempt."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((address, port), timeout=seconds).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_SECONDS)


def call_roll(device: str) -> TCPStore:
    """Waits until every process of the launch is here.

    Args:
        device: Kind of device that this process would work on.

    Returns:
        The store, to be kept until there is a group.

    Raises:
        HpoError: A process has failed, is missing, or works on another kind of device.
    """
    try:
        store = connect(_GROUP_SECONDS, host=_rank() == 0)
        answers = _exchange(store, {"device": device}, _GROUP_SECONDS)
        if failure := _why_no_group(answers):
            _let_others_read(store)
            raise failure
    except (DistError, OSError) as error:
        raise LaunchError(f"the processes of this launch do not meet ({error})") from None
    return store


def report_failure(error: HpoError) -> HpoError:
    """Lets the others know that this process ends before there is a group.

    Returns:
        What all of them know then; `error` itself where they did not come.
    """
    with suppress(DistError, OSError):
        store = connect(_FAILED_SECONDS, host=_rank() == 0)
        report = (str(error), error.exit_status)
        answers = _exchange(store, {"error": report}, _FAILED_SECONDS)
        _let_others_read(store)
        if None not in answers:
            return common_failure(_errors(answers), error) or error
    return error


def _why_no_group(answers: Sequence[Answer | None]) -> HpoError | None:
    if failure := common_failure(_errors(answers)):
        return failure
    if None in answers:
        return LaunchError(
            f"process {answers.index(None)} of {len(answers)} has not come within "
            f"{_GROUP_SECONDS // 60} minutes; look for its own message"
        )
    devices = [answer["device"] for answer in answers if answer]
    if len(set(devices)) == 1:
        return None
    found = ", ".join(f"process {rank} on {device}" for rank, device in enumerate(devices))
    failure = LaunchError(
        f"all processes must work on one kind of device, and here it would be {found}; mend the "
        "driver where a GPU is not found, or set ACCELERATE_USE_CPU=1 for all of them"
    )
    failure.shared = True
    return failure


def _errors(answers: Sequence[Answer | None]) -> list[tuple[str, int] | None]:
    errors = [answer.get("error") if answer else None for answer in answers]
    return [(error[0], error[1]) if error else None for error in errors]


def _exchange(store: TCPStore, answer: Answer, seconds: float) -> list[Answer | None]:
    """The answers of all processes by rank; None for those that did not come in time."""
    count, deadline = int(os.environ["WORLD_SIZE"]), time.monotonic() + seconds
    store.set(key(f"answer {_rank()}"), json.dumps(answer))
    while True:
        found = [_read(store, rank) for rank in range(count)]
        if any(other and "error" in other for other in found):
            deadline = min(deadline, time.monotonic() + _FAILED_SECONDS)
        if None not in found or time.monotonic() >= deadline:
            return found
        time.sleep(_LOOK_SECONDS)


def _read(store: TCPStore, rank: int) -> Answer | None:
    name = key(f"answer {rank}")
    return json.loads(store.get(name)) if store.check([name]) else None


def _let_others_read(store: TCPStore) -> None:
    """Without a launcher the store ends with the main process, which must not be the first."""
    store.set(key(f"left {_rank()}"), "")
    everybody = [key(f"left {rank}") for rank in range(int(os.environ["WORLD_SIZE"]))]
    deadline = time.monotonic() + _LEAVE_SECONDS
    while _rank() == 0 and not store.check(everybody) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)


def _rank() -> int:
    return int(os.environ["RANK"])
