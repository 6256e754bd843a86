"""Several processes of one launch: each at its own trials, on its own device."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path

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
    process is a worker of the study that meets the others only in its storage.
    """
    count = int(environment.get("WORLD_SIZE", "1"))
    number = int(environment.get("RANK", "0"))
    local = int(environment.get("LOCAL_RANK", "0"))
    if count == 1:
        return Worker()
    for name in _GROUP_VARIABLES:
        environment.pop(name, None)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    # An empty list hides all devices, and stays empty.
    devices = [str(local)] if visible is None else visible.split(",")
    environment["CUDA_VISIBLE_DEVICES"] = devices[local % len(devices)].strip()
    return Worker(number, count)


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
