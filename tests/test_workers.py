"""Several processes of one launch: their devices, their one writer, and a real launch of two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY

from hpo_summarize.workers import Worker, Writer, n_cores, separate_workers

LAUNCH = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}

CORES = n_cores()


@pytest.fixture(autouse=True)
def _threads_of_the_tests() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_single_process_keeps_its_environment() -> None:
    environment = {"WORLD_SIZE": "1", "RANK": "0", "PATH": "/bin"}
    assert separate_workers(environment) == Worker(0, 1)
    assert environment == {"WORLD_SIZE": "1", "RANK": "0", "PATH": "/bin"}
    assert separate_workers({}) == Worker(0, 1)


def test_a_process_of_a_launch_leaves_its_group_and_keeps_the_rest() -> None:
    environment = {**LAUNCH, "PATH": "/bin", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "3"}
    assert separate_workers(environment) == Worker(2, 4)
    kept = {"PATH": "/bin", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "3"}
    assert environment == {**kept, "CUDA_VISIBLE_DEVICES": "2"}


@pytest.mark.parametrize(
    ("given", "device"),
    [
        (None, "2"),
        ("", ""),
        ("4,5,6,7", "6"),
        ("4, 5, 6, 7", "6"),
        ("3,1", "3"),
        ("GPU-ab", "GPU-ab"),
    ],
)
def test_each_process_gets_one_of_the_devices_that_are_given(
    given: str | None, device: str
) -> None:
    environment = dict(LAUNCH)
    if given is not None:
        environment["CUDA_VISIBLE_DEVICES"] = given
    separate_workers(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == device


THREADS = """
import sys
if "before" in sys.argv:
    import torch
from hpo_summarize.workers import separate_workers
separate_workers()
import torch
print(torch.get_num_threads())
"""
PAIR = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}


def threads_of_a_worker(order: str, launcher: dict[str, str], process: dict[str, str]) -> int:
    """Threads of torch in a worker.

    Args:
        order: Whether torch is imported "before" its cores are shared out, or "after".
        launcher: Variables that the launching process was started with.
        process: Variables that it gives to the worker.
    """
    launch = f"""
import os, subprocess, sys
environment = {{**os.environ, **{process!r}}}
subprocess.run([sys.executable, "-c", {THREADS!r}, {order!r}], env=environment, check=True)
"""
    plain = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", launch]
    return int(subprocess.check_output(command, env={**plain, **launcher}, text=True))


@pytest.mark.parametrize(
    ("order", "launcher", "process", "threads"),
    [
        ("after", {}, PAIR, max(1, CORES // 2)),
        # Two machines with a worker each; the launcher has set one thread of its own accord.
        ("before", {}, {**PAIR, "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, CORES),
        # What the user has set stays, for the launcher or through its options.
        ("after", {"OMP_NUM_THREADS": "1"}, {**PAIR, "LOCAL_WORLD_SIZE": "1"}, 1),
        ("before", {}, {**PAIR, "OMP_NUM_THREADS": str(CORES)}, CORES),
    ],
)
def test_the_workers_of_a_machine_share_its_cores_as_threads_of_torch(
    order: str, launcher: dict[str, str], process: dict[str, str], threads: int
) -> None:
    assert threads_of_a_worker(order, launcher, process) == threads


def test_the_processes_of_a_real_launch_share_the_cores(tmp_path: Path) -> None:
    script = tmp_path / "threads.py"
    script.write_text(THREADS.replace("print(", "print('threads', "))
    plain = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    said = subprocess.check_output(
        [*launcher, "--num_processes", "2", "--main_process_port", "0", str(script)],
        env={**plain, "ACCELERATE_USE_CPU": "1"},
        text=True,
    )
    assert said.count(f"threads {max(1, CORES // 2)}\n") == 2


HOLDER = """
import sys
from pathlib import Path
from hpo_summarize.workers import Writer
writer = Writer(Path(sys.argv[1]))
print(writer.is_here(), writer.is_here(), flush=True)
sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_process_is_the_writer_and_the_next_one_becomes_it_when_that_is_killed(
    tmp_path: Path,
) -> None:
    first = hold(tmp_path)
    assert said(first) == "True True"
    second = hold(tmp_path)
    assert said(second) == "False False"
    here = Writer(tmp_path)
    assert not here.is_here()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert here.is_here()
    second.communicate()
    assert said_by_another(tmp_path) == "False False"


def said_by_another(folder: Path) -> str:
    process = hold(folder)
    return process.communicate()[0].strip()


RECIPE = """
model: {{name: {checkpoint}}}
lora: {{r: 4, alpha: 8}}
data: {{train: {csv}, validation_fraction: 0.25, max_dialogue_tokens: 100, max_summary_tokens: 30}}
training: {{num_epochs: 1, batch_size: 8, learning_rate: 1e-3}}
generation: {{num_beams: 1, max_new_tokens: 16}}
search: {{n_trials: 7, keep_trials: 2, pruner: null}}
space: {{learning_rate: {{type: float, low: 1e-4, high: 1e-2, log: true}}}}
output_dir: {output}
"""


def test_two_processes_of_a_launch_share_the_trials_and_write_whole_files(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "out", tmp_path / "two.yaml"
    recipe.write_text(RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=out))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"]
    options = ["--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, *options, str(REPOSITORY / "scripts" / "search.py"), str(recipe)],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="two", storage=f"sqlite:///{out / 'study.db'}")
    finished = [trial for trial in study.trials if trial.state.is_finished() and trial.values]
    assert len(finished) == 7
    assert not [t for t in study.trials if not t.state.is_finished()]
    assert len({trial.user_attrs["worker"]["pid"] for trial in finished}) == 2
    assert len({trial.params["learning_rate"] for trial in finished}) == 7
    assert list(pd.read_csv(out / "all_trials.csv")["number"]) == [t.number for t in finished]
    assert json.loads((out / "study_stats.json").read_text())["n_trials"] == 7
    assert json.loads((out / "best_params.json").read_text())["best_value"] == study.best_value
    assert "</html>" in (out / "report.html").read_text()
    assert "workers  2" in done.stdout
