"""Two real processes train one trial together: they decide as one, and compute as one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from search_process import REPOSITORY, SEARCH, SECONDS, end_of, start_group, start_script

pytestmark = pytest.mark.slow  # Nearly all of it starts programs or trains.

DRIVER = REPOSITORY / "tests" / "ddp_driver.py"


def launch(mode: str, checkpoint: Path, csv: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Runs the driver on two processes of a real launcher, which ends both when one breaks."""
    out.mkdir()
    start = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"]
    start += ["--num_processes", "2", "--main_process_port", "0", str(DRIVER)]
    return subprocess.run(
        [*start, mode, str(checkpoint), str(csv), str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def run(mode: str, processes: int, checkpoint: Path, csv: Path, out: Path) -> None:
    """Runs the driver as a launcher would, and expects it to end well."""
    out.mkdir()
    log, arguments = out.with_suffix(".log"), (mode, str(checkpoint), str(csv), str(out))
    if processes == 1:
        started = [start_script(DRIVER, log, *arguments, ACCELERATE_USE_CPU="1")]
    else:
        started = start_group(DRIVER, log, *arguments)
    assert end_of(started) == [0] * processes, log.read_text()


@pytest.mark.parametrize(
    ("strategy", "modes"),
    [
        ("random", ("8x1", "4x2", "2x4", "2p4x1", "2p2x2")),
        ("group_by_length", ("8x1", "2p2x2")),
    ],
)
def test_the_effective_batch_is_the_same_training_on_any_number_of_processes(
    strategy: str, modes: Sequence[str], checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    weights, results = {}, {}
    for mode in modes:
        processes = 2 if mode.startswith("2p") else 1
        run(f"{mode}:{strategy}", processes, checkpoint, csv_path, tmp_path / mode)
        results[mode] = result(tmp_path / mode)
        assert results[mode]["world_size"] == processes
        weights[mode] = torch.load(tmp_path / mode / "weights.pt")
    for mode, state in weights.items():
        assert results[mode]["losses"] == pytest.approx(results["8x1"]["losses"], abs=1e-4)
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, weights["8x1"][name], atol=1e-4, rtol=1e-3)
    one, two = (
        json.loads((tmp_path / mode / "texts-0.json").read_text()) for mode in ("8x1", "2p2x2")
    )
    assert one == two
    assert len(two) == 5
    assert results["8x1"]["rouge"] == results["2p2x2"]["rouge"]
    # Each row is decoded once, and the processes share them.
    assert (results["8x1"]["decoded"], results["2p2x2"]["decoded"]) == (5, 3)


def test_a_checkpoint_is_marked_whole_when_every_process_has_written_its_part(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    run("save", 2, checkpoint, csv_path, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert {"trainer_state.json", "rng_state_0.pth", "rng_state_1.pth"} <= set(found)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_pruned_trial_ends_on_both_processes(
    epoch: int, checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    run(f"prune:{epoch}", 2, checkpoint, csv_path, tmp_path / "out")
    found = result(tmp_path / "out")
    assert found["world_size"] == 2
    assert found["states"] == ["COMPLETE", "PRUNED", "PRUNED"]
    assert found["steps"] == [3, epoch, epoch]


def test_a_loss_that_is_not_a_number_ends_the_trial_on_both_processes(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    run("nan", 2, checkpoint, csv_path, tmp_path / "out")
    found = result(tmp_path / "out")
    assert found["states"] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert found["failures"][1] == "the training loss is not a finite number"


def test_a_timeout_ends_both_processes(checkpoint: Path, csv_path: Path, tmp_path: Path) -> None:
    run("timeout", 2, checkpoint, csv_path, tmp_path / "out")
    assert 1 <= len(result(tmp_path / "out")["states"]) < 100


def test_the_callback_prunes_on_both_processes_a_trial_of_optuna_integration_or_of_the_main_one(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    run("integrate", 2, checkpoint, csv_path, tmp_path / "out")
    found = result(tmp_path / "out")
    assert found["world_size"] == 2 and found["steps"] == [[1, 2], [1, 2]]
    first, second = found["ends"]
    assert first == second and all("pruned after epoch 2 with" in end for end in first)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_process_ends_the_launch_with_a_clear_line(
    rank: int, checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    start = time.monotonic()
    done = launch(f"break:{rank}", checkpoint, csv_path, tmp_path / "out")
    assert done.returncode != 0
    assert f"process {rank}, trial 1: RuntimeError: the test breaks this process" in done.stderr
    assert "the same command continues with the next trial" in done.stderr
    assert time.monotonic() - start < 120
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED"]
    assert study.trials[1].user_attrs["failure"] == "RuntimeError: the test breaks this process"


@pytest.mark.parametrize("ranks", ["1", "0,1"])
def test_out_of_memory_ends_the_launch_and_the_same_command_goes_on_with_half_the_batch(
    ranks: str, checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    arguments = (f"memory:{ranks}", str(checkpoint), str(csv_path), str(tmp_path / "out"))
    url, log = f"sqlite:///{tmp_path / 'out' / 'study.db'}", tmp_path / "log"
    (tmp_path / "out").mkdir()
    assert end_of(start_group(DRIVER, log, *arguments)) == [1, 1]
    assert f"process {ranks[0]}, trial 0: out of memory" in log.read_text()
    assert "continues with this trial, with 2 examples at once" in log.read_text()
    trials = optuna.load_study(study_name="s", storage=url).trials
    assert [trial.state.name for trial in trials] == ["FAIL", "WAITING"]
    assert "failure" not in trials[0].user_attrs
    assert trials[1].user_attrs["continues"] == 0
    assert end_of(start_group(DRIVER, log, *arguments)) == [0, 0], log.read_text()
    trials = optuna.load_study(study_name="s", storage=url).trials
    assert [trial.state.name for trial in trials] == ["FAIL", *3 * ["COMPLETE"]]
    assert trials[1].params == trials[0].params
    # 22 rows, 3 epochs; the effective batch stays 2 x 4.
    assert result(tmp_path / "out")["batches"] == 3 * [[2, 2, 9]]


RECIPE = """
model: {{name: {checkpoint}}}
lora: {{r: 4, alpha: 8}}
data: {{train: {csv}, validation_fraction: 0.25, max_dialogue_tokens: 100, max_summary_tokens: 30}}
training: {{num_epochs: 3, batch_size: 8, learning_rate: 1e-3}}
generation: {{num_beams: 1, max_new_tokens: 16}}
search: {{n_trials: 400, parallel: ddp}}
space:
  learning_rate: {{type: float, low: 1e-4, high: 1e-2, log: true}}
  lora_r: {{type: categorical, choices: [2, 4, 8]}}
  hidden_dropout: {{type: float, low: 0.0, high: 0.3}}
output_dir: {output}
"""


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda n: n.name)
def test_the_trial_is_requeued_when_the_other_process_dies_first(
    number: signal.Signals, checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    recipe, out, log = tmp_path / "ddp.yaml", tmp_path / "out", tmp_path / "log"
    recipe.write_text(RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=out))
    main, other = start_group(SEARCH, log, str(recipe))
    wait_for(out / "all_trials.csv")
    assert other.pid is not None and main.pid is not None
    os.kill(other.pid, number)
    other.join(SECONDS)
    if number == signal.SIGINT:  # The signal is for all, and comes to the main one a moment later.
        time.sleep(0.5)
        os.kill(main.pid, number)
    status, _ = end_of([main, other])
    assert status == (130 if number == signal.SIGINT else 1), log.read_text()
    assert "the same command continues" in log.read_text()
    trials = optuna.load_study(study_name="ddp", storage=f"sqlite:///{out / 'study.db'}").trials
    assert not [trial for trial in trials if "failure" in trial.user_attrs]
    assert [trial.state.name for trial in trials][-2:] == ["FAIL", "WAITING"]
    assert trials[-1].user_attrs["continues"] == len(trials) - 2


def test_one_process_of_the_group_makes_the_study_and_writes_its_results(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    recipe, out = tmp_path / "ddp.yaml", tmp_path / "out"
    text = RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=out)
    recipe.write_text(
        text.replace(", max_new_tokens: 16", "").replace("num_epochs: 3", "num_epochs: 1")
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"]
    options = ["--num_processes", "2", "--main_process_port", "0"]
    script = [str(REPOSITORY / "scripts" / "search.py"), str(recipe), "search.n_trials=1"]
    done = subprocess.run(
        [*launcher, *options, *script],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("study    ddp in ") == done.stdout.count("trial   0 (1/1)") == 1
    best = json.loads((out / "best_params.json").read_text())
    study = optuna.load_study(study_name="ddp", storage=f"sqlite:///{out / 'study.db'}")
    assert best["max_new_tokens"] == study.user_attrs["max_new_tokens"] < 34


def test_ctrl_c_ends_both_processes_and_leaves_nothing_running(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "ddp.yaml"
    out = tmp_path / "out"
    recipe.write_text(RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=out))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"]
    options = ["--num_processes", "2", "--main_process_port", "0"]
    process = subprocess.Popen(
        [*launcher, *options, str(SEARCH), str(recipe)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    wait_for(out / "all_trials.csv")
    start = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 45
    assert process.returncode != 0
    assert "the same command continues from there" in errors
    study = optuna.load_study(study_name="ddp", storage=f"sqlite:///{out / 'study.db'}")
    states = {trial.state.name for trial in study.trials}
    assert "COMPLETE" in states
    # Ranks that built different models could not have trained.
    assert not [trial for trial in study.trials if "failure" in trial.user_attrs]
    assert "RUNNING" not in states
