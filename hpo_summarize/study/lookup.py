"""Looks for a study without making anything: no file, no table, no study."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy

from hpo_summarize.study.storage import JOURNAL, _connect_args, build_storage, retry_first_start


def find_study(url: str, study_name: str, to_make: bool = False) -> optuna.Study | None:
    """A study in its storage; None if it has not been made yet.

    Args:
        url: URL of the storage.
        study_name: Name in the storage.
        to_make: It will be made where there is none, so that it must be possible to.

    Raises:
        StudyError: The storage cannot be reached, or could not be made there.
    """
    return retry_first_start(url, lambda: _find(url, study_name, to_make))


def _find(url: str, study_name: str, to_make: bool) -> optuna.Study | None:
    options = None if url.startswith(JOURNAL) else _connect_args(url)
    file = Path(url.removeprefix(JOURNAL)) if options is None else file_of_url(url)
    if file is not None and not file.exists():
        if to_make:
            _check_can_be_made(file)
        return None
    if options is not None and not _has_tables(url, options):
        return None
    storage = build_storage(url)
    if study_name not in optuna.get_all_study_names(storage):
        return None
    return optuna.load_study(study_name=study_name, storage=storage)


def file_of_url(url: str | sqlalchemy.URL) -> Path | None:
    """The file that a database is kept in; None for one on a server, or in memory."""
    parsed = sqlalchemy.make_url(url)
    if parsed.get_backend_name() != "sqlite" or "uri" in parsed.query:
        return None
    return Path(parsed.database) if parsed.database not in (None, "", ":memory:") else None


def _has_tables(url: str, options: dict[str, Any]) -> bool:
    engine = sqlalchemy.create_engine(url, connect_args=options)
    try:
        return sqlalchemy.inspect(engine).has_table("studies")
    finally:
        engine.dispose()


def _check_can_be_made(file: Path) -> None:
    """Raises an `OSError` where the folder of a file is missing or cannot be written."""
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {file.parent}")
    if not os.access(file.parent, os.W_OK):
        raise PermissionError(f"the folder {file.parent} cannot be written")
