"""Signs of life: how often workers give them, and those at a journal, which has none of its own."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

# Seconds. The grace period is 10 heartbeats, so that a worker that is only slow keeps its trial,
# and a locked SQLite file gives up before a trial would be taken for dead.
HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 10 * HEARTBEAT_SECONDS


class BeatingJournal(JournalStorage):
    """A journal beside which every worker has a file that it touches as long as it lives.

    Args:
        backend: The journal.
        folder: For the files; made when a worker begins.
    """

    def __init__(self, backend: BaseJournalBackend, folder: Path) -> None:
        super().__init__(backend)
        self._folder = folder

    def beat(self, worker: Mapping[str, Any]) -> None:
        """Touches the file of a worker; the file server writes down the time of its own clock."""
        self._folder.mkdir(exist_ok=True)
        self._file(worker).touch()

    def is_silent(self, worker: Mapping[str, Any], me: Mapping[str, Any]) -> bool:
        """Whether another worker has not touched its file for longer than the grace period.

        Both times compared are the file server's: the clocks of two machines may differ. A worker
        without a file gets one, and has the grace period from then on.
        """
        self.beat(me)
        now = self._file(me).stat().st_mtime
        try:
            return now - self._file(worker).stat().st_mtime > GRACE_SECONDS
        except FileNotFoundError:
            self.beat(worker)
            return False

    def forget(self, worker: Mapping[str, Any]) -> None:
        """Removes the file of a worker that runs no trial any more."""
        self._file(worker).unlink(missing_ok=True)

    def _file(self, worker: Mapping[str, Any]) -> Path:
        name = f"{worker['host']} {worker['pid']} {worker['started']}"
        return self._folder / hashlib.sha256(name.encode()).hexdigest()[:32]


@contextmanager
def beating(study: optuna.Study, me: Mapping[str, Any]) -> Iterator[None]:
    """Meanwhile this worker gives signs of life, where its storage has no better way."""
    storage = study._storage
    if not isinstance(storage, BeatingJournal):
        yield
        return
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            try:
                storage.beat(me)
            except OSError:
                continue  # The file server is away; the journal itself will tell.

    storage.beat(me)
    thread = threading.Thread(target=beat, daemon=True, name="signs of life")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        storage.forget(me)
