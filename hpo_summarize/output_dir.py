"""The output folder: checked before anything is loaded, and cleared before a debug run."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from filelock import FileLock

from hpo_summarize.errors import Problem, RecipeError
from hpo_summarize.io import make_writable
from hpo_summarize.launch.workers import Worker, launch_name
from hpo_summarize.reporting.summary import DECODING_FOLDER

_MARK = ".debug-run"  # In folders of debug runs; holds the name of the last launch.
_FOLDERS = ("trials", DECODING_FOLDER)
_PAGES = (
    *("optimization_history.html", "param_importances.html", "parallel_coordinate.html"),
    *("slice.html", "intermediate_values.html", "timeline.html", "pareto_front.html"),
)
_FILES = (
    *("best_params.json", "all_trials.csv", "decoding_trials.csv", "study_stats.json"),
    *("report.html", *_PAGES, *(f"{DECODING_FOLDER}/{page}" for page in _PAGES)),
    *("recipe.yaml", "study.db"),
)
_FILES_OF_SQLITE = ("study.db-wal", "study.db-shm")


def prepare_folder(folder: Path, debug: bool) -> None:
    """Makes the output folder, and checks that every result can be written there.

    Args:
        folder: The output folder; made if there is none.
        debug: Whether the folder is for debug runs alone, and is marked as such.

    Raises:
        RecipeError: It cannot be written, has a folder where a file is to be written or the
            reverse, or is to be a debug run's and holds files that no debug run has written.
    """
    make_writable(folder)
    for name in (*_FILES, *_FOLDERS):
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
            f"a debug run needs an empty folder, and {folder} holds {min(others)}, which no "
            "debug run has written; move it, or choose another output_dir"
        )
        raise RecipeError([Problem("output_dir", message)])
    mark.touch()


def clear_debug_folder(folder: Path, worker: Worker) -> None:
    """Deletes what the last debug run has written, and nothing else.

    Args:
        folder: A folder that `prepare_folder` has marked.
        worker: This worker; the first one of a launch clears the folder for all of them.
    """
    mark = folder / _MARK
    with FileLock(folder / f"{_MARK}.lock"):
        launch = launch_name() if worker.count > 1 else ""
        if launch and mark.read_text(encoding="utf-8") == launch:
            return
        for name in (*_FILES, *_FILES_OF_SQLITE):
            (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # It does not exist, or holds other files.
            (folder / DECODING_FOLDER).rmdir()
        for trial in folder.glob("trials/*/trial-*"):
            shutil.rmtree(trial)
        mark.write_text(launch, encoding="utf-8")
