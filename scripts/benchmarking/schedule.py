"""Runs the missing searches of a benchmark, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarking.methods import METHODS
from benchmarking.setting import run_path

from hpo_summarize.errors import HpoError, Problem, RecipeError

_LOOK_SECONDS = 0.2
_SHOWN_LINES = 5

Run = tuple[str, int]


class RunFailed(HpoError):
    """A search of the benchmark ended with an error."""


def check_runs(methods: Sequence[str] | None, seeds: int, jobs: int) -> tuple[list[str], list[int]]:
    """Methods and seeds by their names and numbers on the command line.

    Args:
        methods: Default: all.
        seeds: Number of seeds, at least 1; they are counted from 1.
        jobs: Number of searches that run at once.

    Raises:
        RecipeError: A method is not known, or a number is below 1.
    """
    problems = [
        Problem("--methods", f"{name!r} is not among {', '.join(METHODS)}; leave it out")
        for name in methods or ()
        if name not in METHODS
    ]
    for option, number in (("--seeds", seeds), ("--jobs", jobs)):
        if number < 1:
            problems.append(Problem(option, f"must be 1 or more, got {number}; raise it"))
    if problems:
        raise RecipeError(problems, "command line")
    return list(dict.fromkeys(methods or METHODS)), list(range(1, seeds + 1))


def run_missing(output_dir: Path, methods: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Runs every search whose record is not there yet; with one thread each.

    Args:
        output_dir: A folder that `prepare` has made.
        methods: Names of the methods.
        seeds: Seeds; each method runs one search with each.
        jobs: Number of searches that run at once, at least 1.

    Raises:
        RunFailed: A search failed; the others are ended, and finished ones are kept.
    """
    waiting = [
        (method, seed)
        for seed in seeds
        for method in methods
        if not run_path(output_dir, method, seed).exists()
    ]
    running: dict[Run, subprocess.Popen[bytes]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running[waiting[0]] = _start(output_dir, waiting[0])
                waiting.pop(0)
            time.sleep(_LOOK_SECONDS)
            for run in [run for run, process in running.items() if process.poll() is not None]:
                _finish(output_dir, run, running.pop(run).returncode)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def _start(output_dir: Path, run: Run) -> subprocess.Popen[bytes]:
    method, seed = run
    print(f"{method}, seed {seed}: begins", flush=True)
    log = _log_path(output_dir, run)
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "benchmarking.one_run", str(output_dir), method, str(seed)]
    path = filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
    own = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **own, "PYTHONPATH": os.pathsep.join(path)}
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def _finish(output_dir: Path, run: Run, status: int) -> None:
    method, seed = run
    log = _log_path(output_dir, run)
    if status:
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RunFailed(
            f"the search '{method}' with seed {seed} ended with status {status}:\n"
            + "\n".join(last[-_SHOWN_LINES:])
            + f"\nIts whole output is in {log}; fix the cause, and the same command goes on"
        )
    record = read_records(output_dir, [method], [seed])[0]
    print(
        f"{method}, seed {seed}: best {record['best_value']:.4f} in "
        f"{record['wall_seconds']:.0f} s, {record['cpu_seconds']:.0f} CPU s; its winner writes "
        f"{record['summaries']['n_distinct']} distinct summaries for "
        f"{record['summaries']['n_rows']} test dialogues",
        flush=True,
    )


def _log_path(output_dir: Path, run: Run) -> Path:
    return run_path(output_dir, *run).with_suffix(".log")


def read_records(
    output_dir: Path, methods: Sequence[str], seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """The records of finished runs, method by method."""
    paths = [run_path(output_dir, method, seed) for method in methods for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]
