"""Writes files that another process may be reading; makes and deletes folders that carry a mark.

A folder is deleted only if it carries a mark that was written when it was made.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hpo_summarize.errors import HpoError, Problem, RecipeError, RunStopped

MARK = "identity.json"  # Its content says what the folder belongs to.


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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # A write that fails has none, and the temporary is gone.
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
        place = folder if folder.is_dir() else error.filename or folder
        message = f"the folder {place} cannot be written ({error.strerror}); choose another one"
        raise RecipeError([Problem(key, message)]) from None


def mark_of(folder: Path) -> str | None:
    """What a folder belongs to; None for one without a mark."""
    try:
        return (folder / MARK).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def claim(folder: Path, owner: str) -> None:
    """Makes an empty folder that carries the mark of its owner.

    Args:
        folder: What the same owner has written into it is deleted.
        owner: Content of the mark.

    Raises:
        RunStopped: It holds anything else. Nothing has been deleted.
    """
    discard(folder, owner)
    if is_taken(folder):
        raise RunStopped(taken_message(folder))
    write_text(folder / MARK, owner)


def discard(folder: Path, owner: str | None) -> None:
    """Deletes a folder that carries the mark of `owner`, and leaves any other one as it is."""
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
    """Whether something stands in the place of a folder that is to be made; no mark alone does."""
    if folder.is_dir():
        return any(path.name != MARK for path in folder.iterdir())
    return os.path.lexists(folder)


def first_taken(folders: Sequence[Path], count_begun: Callable[[], int]) -> Path | None:
    """The first folder that is in the way of a trial to come.

    Args:
        folders: Folders of the trials 0, 1, 2 and so on.
        count_begun: Gives the number of trials in the study. Called after the folders were looked
            at: one that another worker has just made is then one of a trial that is counted.
    """
    taken = [number for number, folder in enumerate(folders) if is_taken(folder)]
    begun = count_begun() if taken else 0
    return next((folders[number] for number in taken if number >= begun), None)


def taken_message(folder: Path) -> str:
    """The message for a folder that is in the way."""
    return (
        f"{folder} is needed for a trial or a training, and holds files of another one, or of "
        "somebody else; they are never deleted. Move them, or choose another output_dir"
    )


def folder_below(root: Path, name: Any) -> Path:
    """The folder of a name inside of another folder.

    Args:
        root: The other folder.
        name: What a user's function gave as a name.

    Raises:
        HpoError: It is no name, or one of `root` itself or of a folder outside of it.
    """
    rule = f"hp_name must return the name of a folder inside of output_dir ({root}), got {name!r}"
    step = "return another name for each trial, such as f'run-{trial.number}'"
    if not isinstance(name, str) or "\0" in name:
        raise HpoError(f"{rule}; {step}")
    parents, around = (root / name).resolve().parents, root.resolve()
    if around not in parents:
        raise HpoError(f"{rule}, which is not inside of it; {step}")
    # A trial that is not among the best loses its folder, with all that is inside of it.
    if outer := next((p for p in parents if around in p.parents and mark_of(p)), None):
        raise HpoError(f"{rule}, which is inside of the folder of another trial ({outer}); {step}")
    return root / name
