"""Looks for a study without making anything: no file, no table, no study."""

from __future__ import annotations

import os
from pathlib import Path

import optuna
import sqlalchemy

from hpo_summarize.study.storage import JOURNAL, _connect_args, build_storage, retry_first_start


def find_study(url: str, study_name: str) -> optuna.Study | None:
    """A study in its storage; None if it has not been made yet.

    Args:
        url: URL of the storage.
        study_name: Name in the storage.

    Raises:
        StudyError: The storage cannot be reached, or could not be made there.
    """
    return retry_first_start(url, lambda: _find(url, study_name))


def _find(url: str, study_name: str) -> optuna.Study | None:
    if not (_journal_exists(url) if url.startswith(JOURNAL) else _has_tables(url)):
        return None
    storage = build_storage(url)
    if study_name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=study_name, storage=storage)


def _journal_exists(url: str) -> bool:
    return _is_there(Path(url.removeprefix(JOURNAL)))


def _has_tables(url: str) -> bool:
    options = _connect_args(url)
    parsed = sqlalchemy.make_url(url)
    in_file = parsed.get_backend_name() == "sqlite" and "uri" not in parsed.query
    if in_file and not _is_there(Path(parsed.database or "")):
        return False
    engine = sqlalchemy.create_engine(url, connect_args=options)
    try:
        return sqlalchemy.inspect(engine).has_table("studies")
    finally:
        engine.dispose()


def _is_there(path: Path) -> bool:
    """Whether a file exists; if not, it must be possible to make it.

    Raises:
        OSError: Its folder is missing or cannot be written.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    if not path.exists() and not os.access(path.parent, os.W_OK):
        raise PermissionError(f"the folder {path.parent} cannot be written")
    return path.exists()
