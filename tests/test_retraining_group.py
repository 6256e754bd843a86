"""scripts/train.py on two real processes: they train as one, write as one, and end as one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from final_models import read_json, write_recipe
from programs import run_well
from safetensors.torch import load_file
from search_process import REPOSITORY, end_of, start_group, start_script

pytestmark = pytest.mark.slow  # Nearly all of it starts programs or trains.

TRAIN = REPOSITORY / "scripts" / "train.py"
DRIVER = REPOSITORY / "tests" / "retraining_driver.py"
SECONDS = 20  # A process whose group is gone ends well within.


@pytest.fixture(scope="module")
def recipe(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a search of two trials, without dropout, which each process draws for itself.

    Its 24 dialogues are no multiple of its batches of 10.
    """
    folder = tmp_path_factory.mktemp("group")
    calm = Path(shutil.copytree(checkpoint, folder / "calm"))
    config = {**read_json(calm / "config.json"), "dropout": 0.0}
    (calm / "config.json").write_text(json.dumps(config))
    path = write_recipe(folder / "s", calm, lora="{r: 4, alpha: 8}")
    text = path.read_text().replace("num_epochs: 2, batch_size: 4", "num_epochs: 8, batch_size: 10")
    path.write_text(re.sub(r"\n  hidden_dropout: .*", "", text))
    run_well("search", path)
    return path


@pytest.fixture
def out(recipe: Path, tmp_path: Path) -> Path:
    """An output folder of its own with the results of the search."""
    return Path(shutil.copytree(recipe.parent / "out", tmp_path / "out"))


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def printed(text: str, out: Path) -> list[str]:
    """The lines of an output without what may differ by rounding, and without torch's own."""
    lines = [line for line in text.splitlines() if not line.startswith("[rank")]
    return [re.sub(r"\d", "0", line.replace(str(out), "OUT")) for line in lines]


def test_two_processes_train_measure_and_print_as_one(
    recipe: Path, out: Path, tmp_path: Path
) -> None:
    other, log = Path(shutil.copytree(out, tmp_path / "other")), tmp_path / "log"
    options = ["--top", "2", "train.seeds=[1, 2]", "--output_dir"]
    one = run_well("train", recipe, *options, other)
    assert end_of(start_group(TRAIN, log, str(recipe), *options, str(out))) == [0, 0]
    assert printed(log.read_text(), out) == printed(one.stdout + one.stderr, other)
    scores, expected = (read_json(folder / "model" / "scores.json") for folder in (out, other))
    assert scores == expected
    assert len(scores["trainings"]) == 4 and scores["scores"]["test"]["rougeL"] > 0.1
    for name, tensor in weights_of(other).items():
        torch.testing.assert_close(weights_of(out)[name], tensor, atol=1e-5, rtol=1e-4)
    names = [sorted(path.name for path in (f / "model").iterdir()) for f in (out, other)]
    assert names[0] == names[1]
    assert not (out / "training").exists()


def wait_for_checkpoint(out: Path, processes: list[BaseProcess]) -> None:
    deadline = time.monotonic() + 120
    while not any(out.glob("training/*/checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline and all(one.is_alive() for one in processes)
        time.sleep(0.02)


def longer(out: Path) -> list[str]:
    """Options for the best trial with 12 epochs, and with dropout, without its study."""
    (out / "study.db").unlink(missing_ok=True)
    best, path = read_json(out / "best_params.json"), out.parent / "longer.json"
    path.write_text(json.dumps({**best, "best_epoch": 12}))
    options = ["training.num_epochs=12", "lora.dropout=0.2", "--best_params"]
    return [*options, str(path), "--output_dir", str(out)]


@pytest.mark.parametrize("rank", [0, 1])
def test_when_one_process_is_killed_the_other_ends_and_the_same_command_goes_on(
    rank: int, recipe: Path, out: Path, tmp_path: Path
) -> None:
    log, again = tmp_path / "log", tmp_path / "again"
    group = start_group(TRAIN, log, str(recipe), *longer(out))
    wait_for_checkpoint(out, group)
    start = time.monotonic()
    group[rank].kill()
    statuses = end_of(group)
    assert time.monotonic() - start < SECONDS
    assert statuses[rank] == -signal.SIGKILL and statuses[1 - rank] == 1
    assert "another process of the launch is gone" in log.read_text()
    assert "what has finished is kept; the same command continues" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert end_of(start_group(TRAIN, again, str(recipe), *longer(out))) == [0, 0]
    assert "epoch 1/12" not in again.read_text() and "epoch 12/12" in again.read_text()
    if rank == 1:
        calm = Path(shutil.copytree(recipe.parent / "out", tmp_path / "calm"))
        assert end_of(start_group(TRAIN, log, str(recipe), *longer(calm))) == [0, 0]
        assert all(weights_of(calm)[name].equal(tensor) for name, tensor in weights_of(out).items())


def test_ctrl_c_ends_both_with_one_message(recipe: Path, out: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    group = start_group(TRAIN, log, str(recipe), *longer(out))
    wait_for_checkpoint(out, group)
    for process in reversed(group):
        assert process.pid is not None
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.3)
    assert end_of(group) == [130, 130]
    assert log.read_text().count("interrupted: every finished epoch is kept") == 1
    assert "Traceback" not in log.read_text()


WRONG = [
    (["--best_params", "nothing.json"], "there is no file nothing.json"),
    (["data.test=nothing.csv"], "nothing.csv"),
    (["--output_dir", "/proc/nothing"], "cannot be written"),
    (["training.batch_size=5"], "batch_size 5 cannot be split evenly among 2 processes"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_what_is_wrong_is_said_once(
    arguments: list[str], message: str, recipe: Path, out: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    (out / "study.db").unlink()  # It would refuse another batch size first.
    options = [str(recipe), "--output_dir", str(out), *arguments]
    assert end_of(start_group(TRAIN, log, *options)) == [2, 2]
    text = log.read_text()
    assert text.count("error:") == text.count(message) == 1
    assert "Traceback" not in text
    assert not (out / "training").exists()


def test_a_wrong_recipe_is_said_once_under_a_launcher(recipe: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    group = start_group(TRAIN, log, str(recipe), "training.batch_sise=4")
    assert 2 in end_of(group, as_launcher=True)
    text = log.read_text()
    assert text.count("error:") == text.count("training.batch_sise: unknown") == 1
    assert "Traceback" not in text


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_process_ends_both_and_is_said_once(
    rank: int, recipe: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    start = time.monotonic()
    arguments = ("error", str(rank), str(recipe), str(tmp_path / "t"))
    assert end_of(start_group(DRIVER, log, *arguments)) == [1, 1]
    assert time.monotonic() - start < 2 * SECONDS
    text = log.read_text()
    assert text.count("RuntimeError: the test breaks this process") == 1
    assert f"the training failed on process {rank} (RuntimeError: the test breaks" in text
    assert "another process of the launch is gone" in text
    assert "Traceback" not in text and "gloo" not in text


def test_a_launcher_ends_with_a_status_when_one_process_fails(recipe: Path, tmp_path: Path) -> None:
    start = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"]
    start += ["--num_processes", "2", "--main_process_port", "0", str(DRIVER)]
    done = subprocess.run(
        [*start, "error", "1", str(recipe), str(tmp_path / "t")],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode != 0
    assert "the training failed on process 1 (RuntimeError: the test breaks" in done.stderr


def driven(folder: Path) -> tuple[dict[str, torch.Tensor], Any]:
    return torch.load(folder / "weights.pt"), read_json(folder / "batches.json")


@pytest.mark.parametrize("ranks", ["1", "0,1"])
def test_out_of_memory_the_same_command_goes_on_with_half_of_the_examples_at_once(
    ranks: str, recipe: Path, tmp_path: Path
) -> None:
    eight = tmp_path / "eight.yaml"
    eight.write_text(recipe.read_text().replace("batch_size: 10", "batch_size: 8"))
    log, folder = tmp_path / "log", tmp_path / "work" / "t"
    arguments = ("memory", ranks, str(eight), str(folder))
    assert end_of(start_group(DRIVER, log, *arguments)) == [1, 1]
    assert f"out of memory on process {ranks[0]}" in log.read_text()
    assert "the same command continues with 2 examples at once on each device" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert end_of(start_group(DRIVER, log, *arguments)) == [0, 0]
    weights, batches = driven(folder)
    assert batches == [[step, 2, 2] for step in range(3, 9)]  # On from the first epoch.
    calm = ("none", "0", str(eight), str(tmp_path / "calm" / "t"))
    assert end_of([start_script(DRIVER, log, *calm, ACCELERATE_USE_CPU="1")]) == [0]
    for name, tensor in driven(tmp_path / "calm" / "t")[0].items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-5, rtol=1e-4)
