"""The output folder: checked before anything is loaded, and begun anew for a debug run."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from filelock import FileLock

from hpo_summarize.errors import Problem, RecipeError
from hpo_summarize.io import make_writable
from hpo_summarize.launch.workers import Worker, launch_name
from hpo_summarize.reporting.summary import DECODING_FOLDER, RESULT_FILES

_MARK = ".debug-run"  # Stands in folders that a debug run has made, with the launch that it was of.
_FOLDERS = ("trials", DECODING_FOLDER)
_OWN_FILES = ("study.db", "study.db-wal", "study.db-shm", "recipe.yaml", *RESULT_FILES)


def prepare_folder(folder: Path, debug: bool) -> None:
    """Makes the output folder, and refuses one in which not everything could be written.

    Args:
        folder: The output folder; made if there is none.
        debug: Whether the folder is for debug runs alone, and is marked as such.

    Raises:
        RecipeError: It cannot be written, something stands in the place of a result, or it holds
            files and no debug run has made it.
    """
    make_writable(folder)
    for name in (*RESULT_FILES, "recipe.yaml", "study.db", *_FOLDERS):
        if (path := folder / name).exists() and path.is_dir() != (name in _FOLDERS):
            found, wanted = ("file", "folder") if name in _FOLDERS else ("folder", "file")
            message = f"{path} is a {found}, and a {wanted} is to be written there; move it"
            raise RecipeError([Problem("output_dir", message)])
    if debug:
        _claim(folder)


def _claim(folder: Path) -> None:
    """Marks an empty folder as that of debug runs; deletes nothing."""
    mark = folder / _MARK
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others and not mark.exists():
        message = (
            f"a debug run begins with an empty folder, and {folder} holds {min(others)}, which no "
            "debug run has written; move it, or choose another output_dir"
        )
        raise RecipeError([Problem("output_dir", message)])
    mark.touch()


def clear_debug_folder(folder: Path, worker: Worker) -> None:
    """Deletes what the debug run before this one has written, and nothing else.

    Args:
        folder: A folder that `prepare_folder` has marked.
        worker: This worker; the first of a launch that comes here clears for all of them.
    """
    mark = folder / _MARK
    with FileLock(folder / f"{_MARK}.lock"):
        launch = launch_name() if worker.count > 1 else ""
        if launch and mark.read_text(encoding="utf-8") == launch:
            return
        for name in _OWN_FILES:
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # It is not there, or holds files of others.
            (folder / DECODING_FOLDER).rmdir()
        for trial in folder.glob("trials/*/trial-*"):
            shutil.rmtree(trial)
        mark.write_text(launch, encoding="utf-8")
