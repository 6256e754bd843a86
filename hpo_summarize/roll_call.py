"""Before the processes of a launch are a group: each says whether it can become a part of it.

The others would wait for half an hour for a process that ends before there is a group. They meet in
the key-value store of the launcher, or without one in that of the main process.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch.distributed import DistError, TCPStore

from hpo_summarize.errors import HpoError, LaunchError, common_failure

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
