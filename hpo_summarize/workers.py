"""Several processes of one launch: each at its own trials, on its own device."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

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
_THREADS = "OMP_NUM_THREADS"


@dataclass(frozen=True)
class Worker:
    """One process of a launch.

    Attributes:
        number: From 0.
        count: Processes of the launch.
    """

    number: int = 0
    count: int = 1


def separate_workers(environment: MutableMapping[str, str] = os.environ) -> Worker:
    """Makes this process independent of the others of its launch, with one device of its own.

    To be called before anything asks for a device: no process group is formed then, and each
    process is a worker of the study that meets the others only in its storage. The workers of one
    machine share its processor cores: with more threads than cores each would slow down the others.
    """
    count = int(environment.get("WORLD_SIZE", "1"))
    number = int(environment.get("RANK", "0"))
    local = int(environment.get("LOCAL_RANK", "0"))
    if count == 1:
        return Worker()
    if not _user_chose_threads(environment, _environment_of_parent()):
        _use_threads(n_cores() // int(environment.get("LOCAL_WORLD_SIZE", count)), environment)
    for name in _GROUP_VARIABLES:
        environment.pop(name, None)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    # An empty list hides all devices, and stays empty.
    devices = [str(local)] if visible is None else visible.split(",")
    environment["CUDA_VISIBLE_DEVICES"] = devices[local % len(devices)].strip()
    return Worker(number, count)


def n_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _user_chose_threads(environment: Mapping[str, str], launcher: Mapping[str, str]) -> bool:
    """Whether the number of threads is the user's.

    torchrun and `accelerate launch` set 1 where nothing is set, for processes that they start.
    """
    return environment.get(_THREADS, "1") != "1" or _THREADS in launcher


def _environment_of_parent() -> Mapping[str, str]:
    """What the parent of this process was started with; nothing where that cannot be read."""
    try:
        return psutil.Process(os.getppid()).environ()
    except (psutil.Error, OSError):
        return {}


def _use_threads(count: int, environment: MutableMapping[str, str]) -> None:
    """Sets the threads of torch, be it imported already or not."""
    count = max(1, count)
    environment[_THREADS] = str(count)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)


class Writer:
    """Among the workers of one output folder, the one that prints and writes the results.

    The lock belongs to a process and goes when the process does; the next worker that asks gets it.

    Args:
        output_dir: Folder that the workers share.
        eligible: False for a process that only follows the main one of its group.
    """

    def __init__(self, output_dir: Path, eligible: bool = True) -> None:
        self._eligible = eligible
        self._lock = FileLock(output_dir / ".writer.lock", is_singleton=True)

    def is_here(self) -> bool:
        """Whether this process is the writer; it becomes it if there is none."""
        if not self._eligible:
            return False
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        return True
