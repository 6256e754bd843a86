"""Scripts as processes that start in a moment, since a server of theirs has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from torch.distributed import TCPStore

REPOSITORY = Path(__file__).resolve().parent.parent
SEARCH = REPOSITORY / "scripts" / "search.py"
SECONDS = 240  # No process of the tests takes as long.

_stores: list[TCPStore] = []
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "hpo_summarize.optimizer",
        "hpo_summarize.console",
    ]
)


def start_search(log: Path, *arguments: str, **environment: str) -> BaseProcess:
    """Starts scripts/search.py with its arguments; what it prints is added to a file."""
    return start_script(SEARCH, log, *arguments, **environment)


def start_group(script: Path, log: Path, *arguments: str) -> list[BaseProcess]:
    """Starts a script twice, with the environment and the store that a launcher has for them.

    In contrast to a launcher, nobody ends the one when the other dies, but `end_of` can.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    _stores.append(store)
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "1"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    return [
        start_script(script, log, *arguments, RANK=rank, LOCAL_RANK=rank, **shared)
        for rank in ("0", "1")
    ]


def end_of(processes: list[BaseProcess], as_launcher: bool = False) -> list[int | None]:
    """Waits for processes; their exit statuses, negative for a signal.

    Args:
        processes: Processes of one launch.
        as_launcher: Ends the others (SIGTERM) when one of them fails.
    """
    while as_launcher and all(process.exitcode in (None, 0) for process in processes):
        alive = [process.sentinel for process in processes if process.is_alive()]
        if not alive or not wait(alive, SECONDS):
            break
    for process in processes:
        if as_launcher and process.is_alive():
            process.terminate()
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
