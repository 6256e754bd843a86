"""Searches as processes that start in a moment, since a server of theirs has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["hpo_summarize.optimizer", "hpo_summarize.summary"])


def start_search(log: Path, *arguments: str, **environment: str) -> BaseProcess:
    """Starts scripts/search.py with its arguments; what it prints is added to a file."""
    process = _context.Process(target=_run, args=(str(log), arguments, environment))
    process.start()
    return process


def _run(log: str, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    os.environ.update(environment)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    script = str(REPOSITORY / "scripts" / "search.py")
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
