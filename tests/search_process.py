"""Scripts as processes that start in a moment, since a server of theirs has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
SEARCH = REPOSITORY / "scripts" / "search.py"
SECONDS = 240  # No process of the tests takes as long.

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "hpo_summarize.optimizer",
        "hpo_summarize.console",
        "hpo_summarize.console",
    ]
)


def start_search(log: Path, *arguments: str, **environment: str) -> BaseProcess:
    """Starts scripts/search.py with its arguments; what it prints is added to a file."""
    return start_script(SEARCH, log, *arguments, **environment)


def start_group(script: Path, log: Path, *arguments: str) -> list[BaseProcess]:
    """Starts a script twice, with the environment that a launcher gives to two processes.

    In contrast to a launcher nobody ends the one when the other dies.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        start_script(script, log, *arguments, RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in ("0", "1")
    ]


def end_of(processes: list[BaseProcess]) -> list[int | None]:
    """Waits for processes; their exit statuses, negative for a signal."""
    for process in processes:
        process.join(SECONDS)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def start_script(script: Path, log: Path, *arguments: str, **environment: str) -> BaseProcess:
    """Starts a script of this repository; what it prints is added to a file."""
    process = _context.Process(target=_run, args=(script, log, arguments, environment))
    process.start()
    return process


def _run(script: Path, log: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")
