"""Signs of life: how workers give them, and how others notice that they have stopped."""

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


class Watch:
    """How long the signs of other workers have stayed the same, by this process's monotonic clock.

    No time that another machine, a file server or a database has written is compared with another:
    their clocks and time zones may differ, and each may be set while a study runs.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[Any, float]] = {}

    def seconds_unchanged(self, number: int, sign: Any) -> float:
        """Seconds since the sign of a trial was first seen as it is now; 0 at the first look."""
        now = time.monotonic()
        if number not in self._seen or self._seen[number][0] != sign:
            self._seen[number] = (sign, now)
        return now - self._seen[number][1]


def sign_of_life(storage: BaseStorage, trial: FrozenTrial) -> Any:
    """What changes as long as the worker of a running trial lives; None: the storage has no such.

    In a database that is the heartbeat of the trial, beside a journal the file of the worker.
    """
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    read = getattr(backend, "sign_of_life", None)
    return None if read is None else read(trial)


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
        """Touches the file of a worker."""
        self._folder.mkdir(exist_ok=True)
        self._file(worker).touch()

    def sign_of_life(self, trial: FrozenTrial) -> int:
        """When the worker of a trial last touched its file, by any clock; 0: it has no file."""
        try:
            return self._file(trial.user_attrs[WORKER]).stat().st_mtime_ns
        except FileNotFoundError:
            return 0

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
