"""Atomic writes, and folders that are deleted only if they carry the mark of their owner."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpo_summarize.errors import HpoError, Problem, RecipeError, RunStopped

MARK = "identity.json"  # Its content identifies the owner of the folder.


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file atomically: a reader sees the old or the new content.

    Args:
        path: Path of the file; its folder is created if missing.
        text: The content; line ends are written as they are.

    Raises:
        OSError: The folder cannot be written; the file is then what it was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile, whose files no one else can read: the results may be shared.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(text.encode("utf-8"))
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # A write that fails has none, and the temporary is gone.
        raise


def make_writable(folder: Path, key: str = "output_dir") -> None:
    """Creates a folder if it is missing, and checks that files can be written into it.

    Args:
        folder: The folder.
        key: The setting that names it, for the message.

    Raises:
        RecipeError: It cannot be created or written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        place = folder if folder.is_dir() else error.filename or folder
        message = f"the folder {place} cannot be written ({error.strerror}); choose another one"
        raise RecipeError([Problem(key, message)]) from None


def mark_of(folder: Path) -> str | None:
    """The mark of a folder; None for one without."""
    try:
        return (folder / MARK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def claim(folder: Path, owner: str) -> None:
    """Creates an empty folder with the mark of its owner.

    Args:
        folder: The folder; what the same owner has written into it is deleted.
        owner: Content of the mark.

    Raises:
        RunStopped: It holds files of another owner; nothing is deleted.
    """
    discard(folder, owner)
    if is_taken(folder):
        raise RunStopped(taken_message(folder))
    write_text(folder / MARK, owner)


def discard(folder: Path, owner: str | None) -> None:
    """Deletes a folder with the mark of `owner`, and no other one."""
    if owner is None or mark_of(folder) != owner:
        return
    for path in folder.iterdir():
        if path.name != MARK:
            delete(path)
    # Last: what a process that is killed here leaves can still be deleted.
    delete(folder)


def delete(path: Path) -> None:
    """Deletes a file, a link or a folder, which may be missing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_taken(folder: Path) -> bool:
    """Whether a folder that is to be created exists with more in it than a mark."""
    if folder.is_dir():
        return any(path.name != MARK for path in folder.iterdir())
    return os.path.lexists(folder)


def first_taken(folders: Sequence[Path], count_begun: Callable[[], int]) -> Path | None:
    """The first existing folder that a future trial would write into.

    Args:
        folders: Folders of the trials 0, 1, 2 and so on.
        count_begun: Returns the number of trials in the study. Called after the folders were
            listed, so that one which another worker has just created belongs to a counted trial.
    """
    taken = [number for number, folder in enumerate(folders) if is_taken(folder)]
    begun = count_begun() if taken else 0
    return next((folders[number] for number in taken if number >= begun), None)


def taken_message(folder: Path) -> str:
    """The message for a folder that `is_taken`."""
    return (
        f"{folder} is needed for a trial or a training, and holds files of another one, or of "
        "someone else; they are never deleted. Move them, or choose another output_dir"
    )


def folder_below(root: Path, name: Any) -> Path:
    """The folder of a trial by the name that a user's `hp_name` returned.

    Args:
        root: The `output_dir` of the trainer.
        name: The name; a path relative to `root`.

    Raises:
        HpoError: It is not text, or not a folder inside of `root` and outside of other trials'.
    """
    rule = f"hp_name must return the name of a folder inside of output_dir ({root}), got {name!r}"
    step = "return another name for each trial, such as f'run-{trial.number}'"
    around, is_name = root.resolve(), isinstance(name, str) and "\0" not in name
    parents = (root / name).resolve().parents if is_name else ()
    if around not in parents:
        raise HpoError(f"{rule}; {step}")
    # A trial that is not among the best loses its folder, with all that is inside of it.
    if outer := next((p for p in parents if around in p.parents and mark_of(p)), None):
        raise HpoError(f"{rule}, which is inside of the folder of another trial ({outer}); {step}")
    return root / name
