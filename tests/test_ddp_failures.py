"""An error that only one of two processes meets ends both at once, with a line that names it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import final_models
import optuna
import psutil
import pytest
from search_process import REPOSITORY, SEARCH, end_of, start_group
from test_ddp import DRIVER, RECIPE, wait_for

pytestmark = pytest.mark.slow  # Nearly all of it starts programs or trains.

ONE_RANK = REPOSITORY / "tests" / "one_rank.py"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"]
LAUNCH += ["--num_processes", "2", "--main_process_port", "0"]
SECONDS = 120  # A process that hangs would take ten minutes or more.


@pytest.fixture
def recipe(checkpoint: Path, csv_path: Path, tmp_path: Path) -> Path:
    path = tmp_path / "ddp.yaml"
    text = RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=tmp_path / "out")
    path.write_text(text.replace("num_epochs: 3", "num_epochs: 1"))
    return path


def trials_in(folder: Path, name: str = "ddp") -> list[optuna.trial.FrozenTrial]:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder / 'study.db'}").trials


def without_lora(recipe: Path) -> str:
    text = recipe.read_text().replace("lora: {r: 4, alpha: 8}", "")
    return "".join(line for line in text.splitlines(True) if "lora_r" not in line)


def check_said_once(log: str, line: str) -> None:
    assert log.count("error: ") == 1, log
    assert f"error: {line}" in log
    assert "Traceback" not in log


# What stops a search while things are loaded, and in the dry run.
SET_UP = {
    "data": ("data.train=missing.csv", "does not exist"),
    "model": ("model.name=./missing", "missing"),
    "tokenizer": ("model.tokenizer=./missing", "missing"),
    "rehearsal": ("training.optim_args=nonsense=1", "training.optim_args: "),
}


@pytest.mark.parametrize(
    "kind, rank",
    [(kind, rank) for kind in ("data", "rehearsal") for rank in (0, 1)]
    + [("model", 1), ("tokenizer", 1)],
)
def test_a_set_up_that_fails_on_one_process_ends_both_and_leaves_no_study(
    kind: str, rank: int, recipe: Path, tmp_path: Path
) -> None:
    (setting, reason), log = SET_UP[kind], tmp_path / "log"
    start = time.monotonic()
    group = start_group(ONE_RANK, log, str(rank), setting, str(SEARCH), str(recipe))
    assert end_of(group) == [2, 2], log.read_text()
    assert time.monotonic() - start < SECONDS
    check_said_once(log.read_text(), f"process {rank}: ")
    assert reason in log.read_text()
    assert not (tmp_path / "out" / "study.db").exists()


BAD_RECIPE = "search.n_trials=none"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_recipe_that_is_wrong_on_one_process_ends_both(
    rank: int, recipe: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    start = time.monotonic()
    group = start_group(ONE_RANK, log, str(rank), BAD_RECIPE, str(SEARCH), str(recipe))
    ends = end_of(group, as_launcher=True)
    assert (ends[rank], ends[1 - rank]) == (2, 130), log.read_text()
    assert time.monotonic() - start < SECONDS
    check_said_once(log.read_text(), ("", "process 1: ")[rank])
    assert "search.n_trials: " in log.read_text()
    assert not (tmp_path / "out" / "study.db").exists()


def test_an_error_of_both_processes_is_said_once_and_names_neither(
    recipe: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    group = start_group(SEARCH, log, str(recipe), SET_UP["data"][0])
    assert end_of(group) == [2, 2], log.read_text()
    check_said_once(log.read_text(), "")
    assert "process " not in log.read_text()


@pytest.mark.parametrize(
    "command, line",
    [
        ([ONE_RANK, 1, "data.train=missing.csv", SEARCH], "process 1: missing.csv: this file does"),
        ([ONE_RANK, 2, "", SEARCH, BAD_RECIPE], ""),
    ],
)
def test_a_launcher_shows_the_error_of_one_process_or_of_all_once(
    command: list[Any], line: str, recipe: Path
) -> None:
    began = time.monotonic()
    done = subprocess.run(
        [*LAUNCH, *map(str, command), str(recipe)],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        timeout=SECONDS,
    )
    assert done.returncode != 0
    assert time.monotonic() - began < SECONDS
    assert done.stderr.count("error: ") == 1
    assert f"error: {line}" in done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_model_that_one_process_cannot_build_ends_both(
    rank: int, recipe: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out, copy, log = tmp_path / "out", tmp_path / "copy", tmp_path / "log"
    shutil.copytree(checkpoint, copy)
    recipe.write_text(without_lora(recipe))  # Each trial reads the model.
    command = (str(rank), f"model.name={copy}", str(SEARCH), str(recipe))
    group = start_group(ONE_RANK, log, *command)
    wait_for(out / "all_trials.csv")
    (copy / "model.safetensors").rename(copy / "away")
    start = time.monotonic()
    assert end_of(group) == [2, 2], log.read_text()
    assert time.monotonic() - start < SECONDS
    check_said_once(log.read_text(), f"process {rank}: ")
    assert (out / "report.html").exists()
    before = trials_in(out)
    assert [trial.state.name for trial in before][-2:] == ["FAIL", "WAITING"]
    assert before[-1].user_attrs["continues"] == len(before) - 2
    (copy / "away").rename(copy / "model.safetensors")
    # One was cut off, and one goes on with it.
    group = start_group(ONE_RANK, log, *command, f"search.n_trials={len(before) - 1}")
    assert end_of(group) == [0, 0], log.read_text()
    after = trials_in(out)
    assert len(after) == len(before)
    assert after[-1].state.name in ("COMPLETE", "PRUNED")
    assert after[-1].params == before[-2].params


@pytest.fixture
def staged(recipe: Path) -> Path:
    text = without_lora(recipe).replace(
        "n_trials: 400", "n_trials: 2, pruner: null, decode: staged, staged: {n_trials: 400}"
    )
    space = "\n  num_beams: {type: categorical, choices: [1, 2, 4]}\noutput_dir"
    recipe.write_text(text.replace("\noutput_dir", space))
    return recipe


def check_requeued_in_decoding(out: Path) -> int:
    """How many trials would be finished if the one that was cut off were tried again."""
    trials = trials_in(out, "ddp.decoding.0-1")
    assert [trial.state.name for trial in trials][-2:] == ["FAIL", "WAITING"]
    assert trials[-1].user_attrs["continues"] == len(trials) - 2
    assert "failure" not in trials[-2].user_attrs
    return len(trials) - 1


@pytest.mark.parametrize("rank", [0, 1])
def test_a_model_that_one_process_cannot_decode_with_ends_both(
    rank: int, staged: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out, copy, log = tmp_path / "out", tmp_path / "copy", tmp_path / "log"
    shutil.copytree(checkpoint, copy)
    command = (str(rank), f"model.name={copy}", str(SEARCH), str(staged))
    group = start_group(ONE_RANK, log, *command)
    wait_for(out / "decoding_trials.csv")
    (copy / "model.safetensors").rename(copy / "away")
    assert end_of(group) == [2, 2], log.read_text()
    check_said_once(log.read_text(), f"process {rank}: ")
    count = check_requeued_in_decoding(out)
    (copy / "away").rename(copy / "model.safetensors")
    group = start_group(ONE_RANK, log, *command, f"search.staged.n_trials={count}")
    assert end_of(group) == [0, 0], log.read_text()
    assert len(trials_in(out, "ddp.decoding.0-1")) == count + 1


@pytest.mark.parametrize("rank", [0, 1])
def test_the_decoding_trial_is_tried_again_when_one_process_is_killed(
    rank: int, staged: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    group = start_group(SEARCH, log, str(staged))
    wait_for(out / "decoding_trials.csv")
    group[rank].kill()
    start = time.monotonic()
    assert sorted(end_of(group)) == [-9, 1], log.read_text()
    assert time.monotonic() - start < SECONDS
    assert "another process of the launch is gone" in log.read_text()
    if rank == 1:
        check_requeued_in_decoding(out)
    count = sum(t.state.name != "FAIL" for t in trials_in(out, "ddp.decoding.0-1"))
    group = start_group(SEARCH, log, str(staged), f"search.staged.n_trials={count}")
    assert end_of(group) == [0, 0], log.read_text()
    trials = trials_in(out, "ddp.decoding.0-1")
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED", "FAIL"}
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    "kind, line",
    [
        ("metric", "process {}: the test lets this process have no metric"),
        ("refuse", "process {}, trial 1: the test breaks this process. The launch ends here;"),
    ],
)
def test_an_error_of_the_set_up_in_a_trial_ends_both_and_requeues_it(
    kind: str, line: str, rank: int, checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    out.mkdir()
    rest = (str(checkpoint), str(csv_path), str(out))
    start = time.monotonic()
    assert end_of(start_group(DRIVER, log, f"{kind}:{rank}", *rest)) == [1, 1], log.read_text()
    assert time.monotonic() - start < SECONDS
    assert f"error: {line.format(rank)}" in log.read_text()
    assert "Traceback" not in log.read_text()
    trials = trials_in(out, "s")
    assert [trial.state.name for trial in trials] == ["COMPLETE", "FAIL", "WAITING"]
    assert "failure" not in trials[1].user_attrs
    assert end_of(start_group(DRIVER, log, f"{kind}:9", *rest)) == [0, 0], log.read_text()
    trials = trials_in(out, "s")
    assert [trial.state.name for trial in trials][2:] == ["COMPLETE", "COMPLETE"]
    assert trials[2].params == {"rate_0.01": 0.01}


def test_an_error_of_every_process_in_a_trial_is_raised_as_with_one_process(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    out.mkdir()
    group = start_group(DRIVER, log, "missing", str(checkpoint), str(csv_path), str(out))
    assert end_of(group) == [1, 1], log.read_text()
    check_said_once(log.read_text(), "the evaluation has no metric 'rougeX'")
    assert [trial.state.name for trial in trials_in(out, "s")] == ["FAIL"]


@pytest.mark.parametrize(
    "n_gpus, ends, line",
    [
        (2, [2, 2], "all processes must work on one kind of device, and here it would be process "),
        (1, [130, 2], "process 1: 2 processes were started on this machine to work together"),
    ],
)
def test_a_gpu_that_one_process_has_not_is_found_before_there_is_a_group(
    n_gpus: int, ends: list[int], line: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    start = time.monotonic()
    group = start_group(DRIVER, log, f"device:1:{n_gpus}", "", "", "")
    assert end_of(group, as_launcher=n_gpus == 1) == ends, log.read_text()
    assert time.monotonic() - start < SECONDS
    check_said_once(log.read_text(), line)


def test_a_trial_without_one_process_random_state_starts_again_with_its_value(
    recipe: Path, tmp_path: Path
) -> None:
    text = without_lora(recipe).replace("num_epochs: 1", "num_epochs: 8")
    recipe.write_text(text.replace("learning_rate: 1e-3", "learning_rate: 5e-3"))
    out, log = tmp_path / "out", tmp_path / "log"
    group = start_group(SEARCH, log, str(recipe))
    deadline = time.monotonic() + SECONDS
    while not list((out / "trials" / "ddp").glob("trial-0/*/trainer_state.json")):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    for process in group:
        process.kill()
        process.join()
    before = trials_in(out)
    assert [trial.state.name for trial in before] == ["RUNNING"]
    for path in (out / "trials" / "ddp" / "trial-0").glob("checkpoint-*/rng_state_1.pth"):
        path.unlink()
    assert end_of(start_group(SEARCH, log, str(recipe), "search.n_trials=1")) == [0, 0]
    after = trials_in(out)
    assert [trial.state.name for trial in after] == ["FAIL", "COMPLETE"]
    assert after[1].params == before[0].params
    rest = ("search.n_trials=1", f"output_dir={tmp_path / 'again'}")
    assert end_of(start_group(SEARCH, log, str(recipe), *rest)) == [0, 0]
    (undisturbed,) = trials_in(tmp_path / "again")
    assert undisturbed.user_attrs["best_epoch"] > 1
    assert undisturbed.intermediate_values == after[1].intermediate_values
    one, two = (f.glob("trials/ddp/*/*/model.safetensors") for f in (out, tmp_path / "again"))
    assert next(one).read_bytes() == next(two).read_bytes()


def test_two_processes_share_an_evaluation_and_measure_no_unused_loss(
    recipe: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    assert end_of(start_group(SEARCH, log, str(recipe), "search.n_trials=1")) == [0, 0]
    (state,) = (tmp_path / "out" / "trials" / "ddp").glob("trial-0/*/trainer_state.json")
    (evaluation,) = [e for e in json.loads(state.read_text())["log_history"] if "eval_rougeL" in e]
    assert "eval_loss" not in evaluation


def test_the_final_training_and_the_prediction_end_together_or_succeed_together(
    checkpoint: Path, tmp_path: Path
) -> None:
    recipe = final_models.search(tmp_path / "run", checkpoint)
    for name in ("train", "predict"):
        script, log = REPOSITORY / "scripts" / f"{name}.py", tmp_path / name
        command = (str(script), str(recipe))
        group = start_group(ONE_RANK, log, "1", "data.test=missing.csv", *command)
        assert end_of(group) == [2, 2], log.read_text()
        check_said_once(log.read_text(), "process 1: missing.csv: this file does not exist")
        assert end_of(start_group(script, log, str(recipe))) == [0, 0], log.read_text()
    written = {path.name for path in (tmp_path / "run" / "out").iterdir()}
    assert {"model", "predictions.csv", "predictions.scores.json"} <= written


ENDER = """
import atexit, os, torch
from hpo_summarize.launch.processes import join_group, on_main
# One write for a line: those of two processes share the pipe.
said = lambda: f"in a group: {torch.distributed.is_initialized()}\\n".encode()
atexit.register(lambda: os.write(1, said()))
join_group()
on_main(lambda: None)
"""


def test_processes_leave_their_group_before_they_end(tmp_path: Path) -> None:
    """Those that do not abort in every second run."""
    script = tmp_path / "script.py"
    script.write_text(ENDER)
    done = subprocess.run(
        [*LAUNCH, str(script)],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("in a group: ") == done.stdout.count("False") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the end of a parent")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("count", [1, 2])
def test_the_processes_of_an_ended_launcher_end_and_requeue_their_trial(
    count: int, number: signal.Signals, recipe: Path, tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    # With one process accelerate starts the script itself, without torch's launcher.
    command = LAUNCH if count == 2 else [*LAUNCH[:4], "--cpu", "--num_processes", "1"]
    with log.open("w") as file:
        launcher = subprocess.Popen(
            [*command, str(SEARCH), str(recipe)],
            stdout=file,
            stderr=file,
            env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        )
    wait_for(out / "all_trials.csv")
    searching = psutil.Process(launcher.pid).children(recursive=True)
    assert len(searching) == count
    launcher.send_signal(number)
    launcher.wait(timeout=30)
    _, alive = psutil.wait_procs(searching, timeout=60)
    for process in alive:
        process.kill()
    assert not alive
    assert "the same command continues from there" in log.read_text()
    states = [trial.state.name for trial in trials_in(out)]
    assert len(states) < 100
    assert "RUNNING" not in states
