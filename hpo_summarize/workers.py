"""Several processes of one launch: each at its own trials, on its own device."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from hpo_summarize.errors import LaunchError

# What a launcher sets to make its processes one group.
_GROUP_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


_TURN_SECONDS = 60  # A machine that vanished may hold a lock of a shared file system for ever.


@dataclass(frozen=True)
class Worker:
    """One process of a launch.

    Attributes:
        number: From 0.
        count: Processes of the launch.
    """

    number: int = 0
    count: int = 1


_ALONE = Worker()


def separate_workers(
    environment: MutableMapping[str, str] = os.environ,
    count_gpus: Callable[[], int] | None = None,
) -> Worker:
    """Makes this process independent of the others of its launch, with one device of its own.

    To be called before anything asks for a device: no process group is formed then, and each
    process is a worker of the study that meets the others only in its storage.

    Args:
        environment: Of this process; changed.
        count_gpus: GPUs of this machine. Default: what torch finds.

    Raises:
        LaunchError: More processes were started on this machine than there are GPUs for them.
    """
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1:
        return Worker()
    number, local = int(environment.get("RANK", "0")), int(environment.get("LOCAL_RANK", "0"))
    local_count = int(environment.get("LOCAL_WORLD_SIZE", count))
    for name in _GROUP_VARIABLES:
        environment.pop(name, None)
    if devices := _gpus(environment, count_gpus or _count_gpus):
        if local_count > len(devices):
            raise LaunchError(_too_many(local_count, devices))
        environment["CUDA_VISIBLE_DEVICES"] = devices[local]
    return Worker(number, count)


def _gpus(environment: Mapping[str, str], count_gpus: Callable[[], int]) -> list[str]:
    """The GPUs that the processes of this machine may use, as CUDA names them."""
    if environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return []
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(count_gpus())]
    return [name.strip() for name in visible.split(",") if name.strip()]


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()  # Asks the driver, and begins nothing on a device.


def _too_many(count: int, devices: Sequence[str]) -> str:
    twice = ",".join(name for name in devices for _ in range(-(-count // len(devices))))
    return (
        f"{count} processes were started on this machine, and there are {len(devices)} GPUs for "
        f"them ({', '.join(devices)}); the others would have none. Start as many as there are "
        f"(--num_processes {len(devices)}), or let them share: CUDA_VISIBLE_DEVICES={twice}"
    )


def launch_note(
    command: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> str | None:
    """What to tell a user whose launcher was asked for several processes and started only this one.

    `accelerate launch --cpu --num_processes 2` does so without a word.

    Args:
        command: Command line of the parent process. Default: as the system has it.
        environment: Of this process.
    """
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        return None
    words = " ".join(_parent_command() if command is None else command)
    asked = re.search(r"accelerate\S* .*--num[_-]processes[= ](\d+)", words)
    if asked is None or int(asked[1]) < 2:
        return None
    return (
        f"note     accelerate was asked for {asked[1]} processes and started one, as it does on a "
        f"CPU; {asked[1]} are started there by\n         ACCELERATE_USE_CPU=1 accelerate launch "
        f"--multi_gpu --num_processes {asked[1]} {shlex.join(sys.argv)}"
    )


def _parent_command() -> list[str]:
    try:
        parent = psutil.Process().parent()
        return parent.cmdline() if parent else []
    except psutil.Error:  # It has ended, or belongs to somebody else.
        return []


def _this_launch(worker: Worker) -> str:
    """A name that the workers of one launch on one machine share, and no other has."""
    process = psutil.Process()
    if worker.count > 1:
        process = process.parent() or process
    return f"{socket.gethostname()} {process.pid} {process.create_time()}"


class Writer:
    """Among the workers of one output folder, the one that prints and writes the results.

    The lock belongs to a process and goes when the process does; the next worker that asks gets it.
    What has been done once for all of them is noted in a file, so that the next one knows.

    Args:
        output_dir: Folder that the workers share.
        eligible: False for a process that only follows the main one of its group.
        worker: Which process of a launch this is.
    """

    def __init__(self, output_dir: Path, eligible: bool = True, worker: Worker = _ALONE) -> None:
        self._eligible = eligible
        self._lock = FileLock(output_dir / ".writer.lock", is_singleton=True)
        self._turn = FileLock(output_dir / ".turn.lock", is_singleton=True)
        self._notes = output_dir / ".writer.notes"
        self._launch = _this_launch(worker)

    def is_here(self) -> bool:
        """Whether this process is the writer; it becomes it if there is none."""
        if not self._eligible:
            return False
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Keeps other workers from writing meanwhile, so that what is read last is written last.

        After a minute without a turn it goes on without one: every file is written whole.
        """
        try:
            with self._turn.acquire(timeout=_TURN_SECONDS):
                yield
        except Timeout:
            yield

    @contextmanager
    def once(self, what: str) -> Iterator[bool]:
        """Whether no worker of this launch has done `what` yet; it is done after the `with` block.

        The others wait meanwhile. Always False for a process that only follows.
        """
        if not self._eligible:
            yield False
            return
        note = f"{self._launch}\t{what}\n"
        with self.turn():
            is_new = not self._notes.exists() or note not in self._notes.read_text("utf-8")
            yield is_new
            if is_new:
                with self._notes.open("a", encoding="utf-8") as file:
                    file.write(note)
