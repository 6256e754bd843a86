"""Where studies are kept: SQLite, a journal file, PostgreSQL, by URL."""

from __future__ import annotations

import functools
import os
import random
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._rdb.models import TrialModel
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import get_lock_file
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError

from hpo_summarize.errors import (
    RunStopped,
    StudyError,
    stopping_at_storage_failure,
    storage_failure,
)
from hpo_summarize.redact import redact_url
from hpo_summarize.study.heartbeats import HEARTBEAT_SECONDS, HeartbeatJournal

T = TypeVar("T")
JOURNAL = "journal://"

# Seconds.
_SQLITE_BUSY_SECONDS = 60
CONNECT_SECONDS = 10
JOURNAL_LOCK_SECONDS = 10
_OUTAGE_SECONDS = 600  # A running search retries for so long while its database is unavailable.

_FIRST_START_TRIES = 12
# In the errors of workers that make the tables of a new database at the same time.
_CREATED_BY_ANOTHER = ("already exists", "duplicate key", "unique constraint", "locked", "deadlock")


def default_storage_url(output_dir: Path) -> str:
    """The SQLite file of a study inside its output folder, whatever characters its path has.

    Raises:
        StudyError: The path has a question mark, and SQLAlchemy is older than 2.1, which quotes it.
    """
    path = str(output_dir / "study.db")
    url = str(sqlalchemy.URL.create("sqlite", database=path))
    if sqlalchemy.make_url(url).database != path:
        raise StudyError(
            f"SQLAlchemy {sqlalchemy.__version__} cannot open {path}, as it ends the path at the "
            "question mark; choose another output_dir, or install SQLAlchemy 2.1"
        )
    return url


def open_with_retries(url: str, start: Callable[[], T]) -> T:
    """Opens something in a storage; retries while other workers create its tables.

    Raises:
        StudyError: It fails for another reason, or too often.
        RunStopped: Its disk is full or cannot be written.
    """
    for attempt in range(_FIRST_START_TRIES):
        try:
            with stopping_at_storage_failure(_printable(url)):
                return start()
        except RunStopped:
            raise
        except Exception as error:  # SQLAlchemy, its drivers and Optuna each raise their own.
            causes = f"{error} {error.__cause__}".lower()
            last = attempt == _FIRST_START_TRIES - 1
            if last or not any(text in causes for text in _CREATED_BY_ANOTHER):
                raise StudyError(_unusable(url, error)) from None
            time.sleep(random.uniform(0.1, 0.5 + attempt / 4))
    raise AssertionError("the last attempt returns or raises")


def _printable(url: str) -> str:
    """A URL for a message: in one line, without its password."""
    return redact_url("".join(filter(str.isprintable, url)))


def _unusable(url: str, error: Exception) -> str:
    shown = _printable(url)
    text = str(error).replace(url, shown).strip() or type(error).__name__
    cause = getattr(error, "orig", None) or error.__cause__
    reason = str(cause or text).strip().splitlines()[0]
    return (
        f"the storage {shown} cannot be used: {reason}. Check the URL (sqlite:///file.db, "
        "journal:///folder/file.log, postgresql+psycopg://user@host/database with the password in "
        "~/.pgpass), that its server runs and its driver is installed "
        "(pip install 'hpo_summarize[postgres]')"
    )


def build_storage(url: str) -> BaseStorage:
    """Opens a storage, and makes its tables if it has none.

    Args:
        url: `sqlite:///file.db` for the processes of one machine, `journal:///file.log` for a file
            system that several machines share, `postgresql+psycopg://user@host/database`
            for several machines, with the password in `~/.pgpass` or before the `@`.
    """
    if url.startswith(JOURNAL):
        return _open_journal(Path(url.removeprefix(JOURNAL)))
    options = {"pool_pre_ping": True, "connect_args": connect_args(url)}
    with warnings.catch_warnings():
        # Heartbeats have been marked experimental since Optuna 2.9.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = RetryingStorage(url, engine_kwargs=options, heartbeat_interval=HEARTBEAT_SECONDS)
    if url.startswith("sqlite"):
        _use_write_ahead_log(storage.engine)
    return storage


def connect_args(url: str) -> dict[str, Any]:
    """Waiting times of a driver.

    Raises:
        ValueError: The URL has a character that the driver would take for something else.
    """
    if not url.isprintable():
        raise ValueError("it holds a line break or another control character")
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return {"timeout": _SQLITE_BUSY_SECONDS}
    if "@" in f"{parsed.host}{parsed.database}":  # A part of the password would be a host name.
        raise ValueError("an @ in the password must be written as %40")
    if "psycopg" in parsed.get_dialect().driver and "connect_timeout" not in parsed.query:
        return {"connect_timeout": CONNECT_SECONDS}
    return {}


def _use_write_ahead_log(engine: sqlalchemy.Engine) -> None:
    """Readers do not wait for a writer then, and the disk is synced less often."""

    def configure(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=NORMAL")

    sqlalchemy.event.listen(engine, "connect", configure)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")


def _open_journal(path: Path) -> HeartbeatJournal:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    lock = JournalFileOpenLock(str(path), grace_period=JOURNAL_LOCK_SECONDS)
    folder = path.with_name(f"{path.name}.workers")
    return HeartbeatJournal(RepairingJournalBackend(str(path), lock), folder)


class RepairingJournalBackend(JournalFileBackend):
    """Before it appends, it cuts off a last line that a killed process has not finished.

    With another line after that, Optuna 5.0 could no longer read the file.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Writes at the end of the last whole line."""
        if _is_torn(self._file_path):
            with get_lock_file(self._lock):  # Not while another process is writing the line.
                _cut_to_last_line(self._file_path)
        super().append_logs(logs)


def _is_torn(path: str) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def _cut_to_last_line(path: str) -> None:
    with open(path, "r+b") as file:
        file.truncate(file.read().rfind(b"\n") + 1)


class RetryingStorage(RDBStorage):
    """A database storage that retries for up to ten minutes while its server is unavailable.

    A restart of the server in the middle of a study costs time and no trial.
    """

    @staticmethod
    def _fill_storage_url_template(template: str) -> str:
        """Leaves braces alone, which a password may have."""
        return template

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        """Lets one worker alone start a queued trial.

        Optuna 5.0 reads the state and writes it, with `SELECT ... FOR UPDATE` between, which SQLite
        does not have: all workers that read it in time would train the trial. Delete when
        `test_a_queued_trial_is_started_by_one_of_four_workers` passes on `RDBStorage`.
        """
        if state != TrialState.RUNNING:
            return super().set_trial_state_values(trial_id, state, values)
        trials = TrialModel.__table__
        start = (
            trials.update()
            .where(trials.c.trial_id == trial_id, trials.c.state == TrialState.WAITING)
            .values(state=state, datetime_start=datetime.now())
        )
        with self.engine.begin() as connection:
            return connection.execute(start).rowcount == 1

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        """None: `requeue_orphans` finds them all, without comparing the times of heartbeats.

        Optuna would fail the trials of living workers when the clock of the database is set, or
        where two sessions of a PostgreSQL have different time zones.
        """
        return []

    def record_heartbeat(self, trial_id: int) -> None:
        """Skips a heartbeat on a full disk: an error in its thread would end all later ones."""
        try:
            super().record_heartbeat(trial_id)
        except Exception as error:
            if storage_failure(error) is None:
                raise

    def last_heartbeat(self, trial: FrozenTrial) -> str:
        """The latest heartbeat of a trial; empty if it has none."""
        query = sqlalchemy.text("SELECT heartbeat FROM trial_heartbeats WHERE trial_id = :trial")
        with self.engine.connect() as connection:
            return str(connection.execute(query, {"trial": trial._trial_id}).scalar() or "")


def _retrying(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        deadline, pause = time.monotonic() + _OUTAGE_SECONDS, 0.5
        while True:
            try:
                return method(*args, **kwargs)
            except (OperationalError, optuna.exceptions.StorageInternalError) as error:
                if not _is_outage(error) or time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 10)

    return call


def _is_outage(error: Exception) -> bool:
    """A lost or refused connection, not a full disk or a wrong statement."""
    cause = error if isinstance(error, DBAPIError) else error.__cause__
    if isinstance(cause, PendingRollbackError):  # Optuna's next statement on a lost connection.
        return True
    if not isinstance(cause, DBAPIError):
        return False
    text = str(cause).lower()
    signs = ("connect", "shutting down", "starting up", "terminating", "server closed", "locked")
    return cause.connection_invalidated or any(sign in text for sign in signs)


# What Optuna's cache in front of a database calls.
for _name in (
    *(name for name in vars(BaseStorage) if not name.startswith("_")),
    *("_create_new_trial", "_set_trial_param", "_get_best_trial_id", "_get_trials"),
    *("record_heartbeat", "last_heartbeat"),
):
    if _name in vars(RDBStorage) or _name in vars(RetryingStorage):
        setattr(RetryingStorage, _name, _retrying(getattr(RetryingStorage, _name)))
