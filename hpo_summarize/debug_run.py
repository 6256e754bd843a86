"""The folder of a debug run: begun anew each time, and never cleared of anybody else's files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil
from filelock import FileLock

from hpo_summarize.errors import Problem, RecipeError
from hpo_summarize.results.files import RESULT_FILES
from hpo_summarize.workers import Worker

_MARK = ".debug-run"  # Stands in folders that a debug run has made, with the launch that it was of.
_OWN_FILES = ("study.db", "study.db-wal", "study.db-shm", "recipe.yaml", *RESULT_FILES)


def claim_debug_folder(folder: Path) -> None:
    """Marks an empty folder as that of debug runs; deletes nothing.

    Args:
        folder: Must exist.

    Raises:
        RecipeError: The folder holds files, and no debug run has made it.
    """
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
        folder: Marked by `claim_debug_folder`.
        worker: Of several workers of one launch, the first one clears for all.
    """
    mark = folder / _MARK
    with FileLock(folder / f"{_MARK}.lock"):
        launch = _launch() if worker.count > 1 else ""
        if launch and mark.read_text(encoding="utf-8") == launch:
            return
        for name in _OWN_FILES:
            (folder / name).unlink(missing_ok=True)
        for trial in folder.glob("trials/*/trial-*"):
            shutil.rmtree(trial)
        mark.write_text(launch, encoding="utf-8")


def _launch() -> str:
    """A name for the process that has started all workers of this launch."""
    parent = os.getppid()
    return f"{parent} {psutil.Process(parent).create_time():.2f}"
