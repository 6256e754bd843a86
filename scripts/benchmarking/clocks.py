"""Wall time, CPU time and memory of this process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import numpy as np
import psutil

_SAMPLE_SECONDS = 0.1
_MEGABYTE = 2**20


@dataclass(frozen=True)
class Time:
    """Wall seconds and CPU seconds."""

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: Time) -> Time:
        return Time(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: Time) -> Time:
        return Time(self.wall - other.wall, self.cpu - other.cpu)


def now() -> Time:
    """The clock and the CPU time of this process."""
    return Time(time.monotonic(), time.process_time())


class Samples:
    """Samples CPU time and resident memory ten times a second while it is open."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._end = threading.Event()
        self._rows: list[tuple[float, float, float]] = []

    def __enter__(self) -> Samples:
        self._note()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()
        self._note()

    @property
    def memory_before(self) -> float:
        """Resident megabytes at the start."""
        return self._rows[0][2] / _MEGABYTE

    @property
    def peak_memory(self) -> float:
        """The most resident megabytes."""
        return max(row[2] for row in self._rows) / _MEGABYTE

    def at(self, moment: float) -> Time:
        """Time from the start to a moment.

        Args:
            moment: In seconds since the epoch of the system clock.
        """
        clock, cpu, _ = np.array(self._rows).T
        return Time(moment - clock[0], float(np.interp(moment, clock, cpu)) - cpu[0])

    def _run(self) -> None:
        while not self._end.wait(_SAMPLE_SECONDS):
            self._note()

    def _note(self) -> None:
        self._rows.append((time.time(), time.process_time(), self._process.memory_info().rss))
