"""Writes files that another process may be reading, and checks that a folder can be written."""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path

from hpo_summarize.errors import Problem, RecipeError


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file so that a reader sees the old or the new content, never a part of it.

    Args:
        path: Path of the file; its folder is made if there is none.
        text: The content; line ends are written as they are.

    Raises:
        OSError: The folder cannot be written; the file is then what it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are closed to everybody else, and the results may be shared.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8"))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def make_writable(folder: Path, key: str = "output_dir") -> None:
    """Makes a folder if there is none, and makes sure that files can be written into it.

    Args:
        folder: The folder.
        key: The setting that names it, for the message.

    Raises:
        RecipeError: It cannot be made, or not be written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        place = error.filename or folder
        message = f"the folder {place} cannot be written ({error.strerror}); choose another one"
        raise RecipeError([Problem(key, message)]) from None
