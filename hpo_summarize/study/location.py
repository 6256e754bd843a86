"""The file of a study and the folder of its trials: found without being created, and checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from hpo_summarize.errors import StudyMoved
from hpo_summarize.study.storage import JOURNAL, build_storage, connect_args, open_with_retries
from hpo_summarize.study.trials import best_trials


def find_study(url: str, study_name: str, to_create: bool = False) -> optuna.Study | None:
    """A study in its storage; None if there is none. Nothing is created.

    Args:
        url: URL of the storage.
        study_name: Name in the storage.
        to_create: Checks that a file that does not exist can be created.

    Raises:
        StudyError: The storage cannot be reached or created.
    """
    return open_with_retries(url, lambda: _find(url, study_name, to_create))


def _find(url: str, study_name: str, to_create: bool) -> optuna.Study | None:
    file = file_of_url(url)
    if file is not None and not file.exists():
        if to_create:
            _check_can_be_created(file)
        return None
    if not url.startswith(JOURNAL) and not _has_tables(url):
        return None
    storage = build_storage(url)
    if study_name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=study_name, storage=storage)


def file_of_url(url: str | sqlalchemy.URL) -> Path | None:
    """The file of a journal or a database; None for a database on a server, or in memory."""
    if isinstance(url, str) and url.startswith(JOURNAL):
        return Path(url.removeprefix(JOURNAL))
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() != "sqlite" or "uri" in parsed.query:
        return None
    return Path(parsed.database) if parsed.database not in (None, "", ":memory:") else None


def _has_tables(url: str) -> bool:
    engine = sqlalchemy.create_engine(url, connect_args=connect_args(url))
    try:
        return sqlalchemy.inspect(engine).has_table("studies")
    finally:
        engine.dispose()


def _check_can_be_created(file: Path) -> None:
    """Raises an `OSError` where the folder of a file is missing or cannot be written."""
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(f"the folder {file.parent} cannot be written")


@contextmanager
def staying_in_place(study: optuna.Study, folder: Path | None) -> Iterator[Callable[[], None]]:
    """Checks that the file of a study is still in place: in the end, and whenever it is called.

    A process can write for ever to a file that was deleted, which no one else can read. A study on
    a server, or in memory, has none.

    Args:
        study: The study.
        folder: Folder with the checkpoints of its trials, which is checked, too; may be missing.

    Raises:
        StudyMoved: One of them was removed or replaced; also in place of any other error.
    """
    file = _file_of(study._storage)
    paths = [] if file is None else [file, *([folder] if folder and folder.is_dir() else [])]
    with ExitStack() as stack:
        # Absolute: the objective of a user may change the working directory.
        inodes = {path: stack.enter_context(_held(path)) for path in map(Path.absolute, paths)}

        def check() -> None:
            moved = [path for path, known in inodes.items() if known != _inode(path)]
            if moved:
                raise StudyMoved(_message(study, moved[0], sorted(inodes.keys() - set(moved))))

        check()
        try:
            yield check
        except Exception:
            check()
            raise
        check()


def _file_of(storage: BaseStorage) -> Path | None:
    backend = getattr(storage, "_backend", storage)  # Behind Optuna's cache, or the journal's own.
    if isinstance(backend, JournalFileBackend):
        return Path(backend._file_path)
    return file_of_url(backend.engine.url) if isinstance(backend, RDBStorage) else None


def _inode(path: Path) -> tuple[int, int] | None:
    """Device and inode, which another file at the same path does not have; None: no file."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_dev, stat.st_ino


@contextmanager
def _held(path: Path) -> Iterator[tuple[int, int] | None]:
    """The inode of a file, which no new file gets meanwhile.

    `O_PATH` opens nothing: to close a real handle would end SQLite's locks on the file
    (sqlite.org/howtocorrupt.html, 2.2).
    """
    handle = None
    with suppress(OSError, AttributeError):  # Only Linux has it.
        handle = os.open(path, os.O_PATH)
    try:
        yield _inode(path) or (0, 0)  # A file that is gone already fails the first check.
    finally:
        if handle is not None:
            os.close(handle)


def _message(study: optuna.Study, moved: Path, others: list[Path]) -> str:
    what = "replaced by another one" if moved.exists() else "removed or moved away"
    there = f"{', '.join(map(str, others))} is still there" if others else "nothing else is left"
    best = ""
    with suppress(Exception):  # A study whose file is gone can often still be read.
        trial = best_trials(study)[0]
        best = f"; the best trial so far, {trial.number}, has {trial.values} with {trial.params}"
    return (
        f"{moved} was {what} while the search ran, and nothing more is written; {there}{best}. "
        "Put it back and start the same command again, or begin anew in another output_dir"
    )
