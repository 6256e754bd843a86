"""Among the workers of one output folder, the one that prints and writes the results."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from hpo_summarize.launch.workers import Worker, launch_name

TURN_SECONDS = 60  # A machine that died may hold a lock of a shared file system for ever.
_ALONE = Worker()


class Writer:
    """Among the workers of one output folder, the one that prints and writes the results.

    The lock is released when its process ends, and the next worker that asks gets it. What has been
    done once for all of them is noted in a file.

    Args:
        output_dir: Folder that the workers share.
        eligible: Whether this process may print; False for one that only follows the main one of
            its group.
        worker: Which process of a launch this is.
    """

    def __init__(self, output_dir: Path, eligible: bool = True, worker: Worker = _ALONE) -> None:
        self._eligible = eligible
        self._lock = FileLock(output_dir / ".writer.lock", is_singleton=True)
        self._turn = FileLock(output_dir / ".turn.lock", is_singleton=True)
        self._notes = output_dir / ".writer.notes"
        self._launch = launch_name() if worker.count > 1 else uuid.uuid4().hex

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

        After a minute it does not wait any longer: every file is written whole.
        """
        try:
            with self._turn.acquire(timeout=TURN_SECONDS):
                yield
        except Timeout:
            yield

    @contextmanager
    def once(self, what: str) -> Iterator[bool]:
        """Whether no worker of this launch has done `what` yet; it is done after the `with` block.

        The others wait meanwhile, and each does it where that cannot be noted. Always False for a
        process that only follows.
        """
        if not self._eligible:
            yield False
            return
        note = f"{self._launch}\t{what}\n"
        with self.turn():
            is_new = not self._notes.exists() or note not in self._notes.read_text("utf-8")
            yield is_new
            if is_new:
                with suppress(OSError), self._notes.open("a", encoding="utf-8") as file:
                    file.write(note)
