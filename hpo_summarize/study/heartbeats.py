"""Heartbeats: how workers on several machines notice that one of them died."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages.journal import BaseJournalBackend
from optuna.trial import FrozenTrial

from hpo_summarize.study.user_attrs import WORKER

# Seconds. The grace period is 10 heartbeats, so that a worker that is only slow keeps its trial,
# and a locked SQLite file gives up before a trial would be taken for dead.
HEARTBEAT_SECONDS = 30
GRACE_SECONDS = 10 * HEARTBEAT_SECONDS


class HeartbeatMonitor:
    """How long heartbeats have stayed the same, by the monotonic clock of this process.

    No time that another machine, a file server or a database has written is compared with another:
    their clocks and time zones may differ, and each may be set while a study runs.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def seconds_unchanged(self, number: int, heartbeat: Any) -> float:
        """Seconds since the heartbeat of a trial was first seen as it is now; at first 0."""
        now = time.monotonic()
        if number not in self._seen or self._seen[number][0] != heartbeat:
            self._seen[number] = (heartbeat, now)
        return now - self._seen[number][1]


def last_heartbeat(storage: BaseStorage, trial: FrozenTrial) -> Any:
    """What changes as long as the worker of a running trial lives; None: the storage has none.

    In a database that is the heartbeat of the trial, beside a journal the file of the worker.
    """
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    read = getattr(backend, "last_heartbeat", None)
    return None if read is None else read(trial)


class HeartbeatJournal(JournalStorage):
    """A journal beside which every worker has a file that it touches as long as it lives.

    Args:
        backend: The journal.
        folder: For the files; made by the first worker.
    """

    def __init__(self, backend: BaseJournalBackend, folder: Path) -> None:
        super().__init__(backend)
        self.folder = folder

    def file_of(self, worker: Mapping[str, Any]) -> Path:
        """The file that a worker touches."""
        name = f"{worker['host']} {worker['pid']} {worker['started']}"
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:32]

    def last_heartbeat(self, trial: FrozenTrial) -> int:
        """When the worker of a trial last touched its file, by any clock; 0: it has no file."""
        try:
            return self.file_of(trial.user_attrs[WORKER]).stat().st_mtime_ns
        except FileNotFoundError:
            return 0


@contextmanager
def sending_heartbeats(study: optuna.Study, worker: Mapping[str, Any]) -> Iterator[None]:
    """Touches the file of a worker meanwhile, beside a journal; Optuna does it for databases."""
    storage = study._storage
    if not isinstance(storage, HeartbeatJournal):
        yield
        return
    storage.folder.mkdir(exist_ok=True)
    file, done = storage.file_of(worker), threading.Event()
    file.touch()

    def send() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            try:
                file.touch()
            except OSError:
                continue  # The file server is unavailable; writing to the journal raises for it.

    thread = threading.Thread(target=send, daemon=True, name="heartbeats")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        file.unlink(missing_ok=True)
