"""scripts/search.py from a shell: results on disk, messages, exit status, resume, interrupt."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from final_models import read_json
from programs import run_program, script

pytestmark = pytest.mark.slow  # Nearly all of it starts programs or trains.

FILES = [
    "all_trials.csv",
    "best_params.json",
    "recipe.yaml",
    "report.html",
    "study.db",
    "study_stats.json",
]
PLOTS = [
    "intermediate_values.html",
    "optimization_history.html",
    "parallel_coordinate.html",
    "param_importances.html",
    "slice.html",
    "timeline.html",
]
RECIPE = """
model: {{name: {checkpoint}}}
lora: {{r: 4, alpha: 8, dropout: 0.05}}
data: {{train: {csv}, validation_fraction: 0.25, max_dialogue_tokens: 100, max_summary_tokens: 30}}
training: {{num_epochs: 1, batch_size: 8, learning_rate: 1e-3}}
generation: {{num_beams: 1, max_new_tokens: 16}}
search: {{n_trials: 3, pruner: {{name: median, n_startup_trials: 1, n_warmup_steps: 1}}}}
space:
  learning_rate: {{type: float, low: 1e-4, high: 1e-2, log: true}}
  lora_r: {{type: categorical, choices: [2, 4]}}
  batch_size: {{type: categorical, choices: [4, 8]}}
  num_beams: {{type: int, low: 1, high: 2}}
  hidden_dropout: {{type: float, low: 0.0, high: 0.3}}
output_dir: {output}
"""


@pytest.fixture
def recipe(tmp_path: Path, checkpoint: Path, csv_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=tmp_path / "out"))
    return path


def test_a_search_writes_everything_that_it_promises(recipe: Path, tmp_path: Path) -> None:
    done = run_program("search", recipe)
    assert done.status == 0, done.stderr
    out = tmp_path / "out"
    written = {path.name for path in out.iterdir() if not path.name.startswith((".", "study.db-"))}
    assert written == {*FILES, *PLOTS, "trials"}
    best = read_json(out / "best_params.json")
    stats = read_json(out / "study_stats.json")
    trials = pd.read_csv(out / "all_trials.csv")
    assert best["best_value"] == stats["best_value"] == trials["value"].max()
    assert best["n_trials"] == stats["n_trials"] == len(trials) == 3
    assert set(best["best_params"]) >= {"learning_rate", "lora_r", "batch_size", "num_beams"}
    assert trials["params_learning_rate"][0] == 1e-3
    kept = [path.name for path in (out / "trials" / "tiny").iterdir()]
    assert kept == [f"trial-{best['best_trial_number']}"]
    lines = [line for line in done.stdout.splitlines() if line.startswith("trial ")]
    assert len([line for line in lines if "best so far" in line]) == 3


def without_times(folder: Path) -> dict[str, Any]:
    trials = pd.read_csv(folder / "all_trials.csv")
    times = [name for name in trials.columns if "time" in name or "seconds" in name]
    best = read_json(folder / "best_params.json")
    return {"trials": trials.drop(columns=times).to_csv(), "best": best}


def test_two_runs_with_one_seed_give_the_same_trials_and_files(
    recipe: Path, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        assert run_program("search", recipe, "--output_dir", tmp_path / name).status == 0
    assert without_times(tmp_path / "a") == without_times(tmp_path / "b")


def test_the_same_command_goes_on_and_debug_leaves_the_study_alone(
    recipe: Path, tmp_path: Path
) -> None:
    assert run_program("search", recipe, "--n_trials", 1).status == 0
    before = (tmp_path / "out" / "all_trials.csv").read_text()
    debug = run_program("search", recipe, "--debug")
    assert debug.status == 0, debug.stderr
    assert len(pd.read_csv(tmp_path / "out" / "debug" / "all_trials.csv")) == 2
    assert (tmp_path / "out" / "all_trials.csv").read_text() == before
    again = run_program("search", recipe, "search.n_trials=2")
    assert "1 of 2 trials done" in again.stdout
    trials = pd.read_csv(tmp_path / "out" / "all_trials.csv")
    assert list(trials["number"]) == [0, 1]


def test_a_study_of_another_recipe_is_refused_with_the_difference_shown(recipe: Path) -> None:
    assert run_program("search", recipe, "--n_trials", 1).status == 0
    refused = run_program("search", recipe, "training.weight_decay=0.1", "space.num_beams.high=3")
    assert refused.status == 2
    assert "space.num_beams.high: was 2, now 3" in refused.stderr
    assert "training.weight_decay: was 0.0, now 0.1" in refused.stderr
    assert "--study_name" in refused.stderr
    assert (
        run_program(
            "search", recipe, "training.per_device_eval_batch_size=4", "--n_trials", 1
        ).status
        == 0
    )
    other = ["training.weight_decay=0.1", "--study_name", "other", "--n_trials", 1]
    assert run_program("search", recipe, *other).status == 0


def test_several_objectives_give_a_pareto_front(recipe: Path, tmp_path: Path) -> None:
    done = run_program(
        "search", recipe, "search.objective=[rouge1, rouge2, rougeL]", "--n_trials", 2
    )
    assert done.status == 0, done.stderr
    best = read_json(tmp_path / "out" / "best_params.json")
    assert set(best["pareto_front"][0]["values"]) == {"rouge1", "rouge2", "rougeL"}
    assert "Pareto front" in done.stdout
    assert "no trial is pruned" in done.stdout


def test_a_search_whose_trials_all_fail_writes_everything_and_says_why(
    recipe: Path, tmp_path: Path
) -> None:
    space = "space={learning_rate: {type: float, low: 1e30, high: 1e38}}"
    wild = ["training.learning_rate=1e30", "training.optim=sgd", "training.max_grad_norm=0", space]
    done = run_program("search", recipe, *wild)
    assert done.status == 1
    assert "3 trials in a row failed with the same reason: the training loss is not" in done.stderr
    assert "Traceback" not in done.stderr
    stats = read_json(tmp_path / "out" / "study_stats.json")
    assert (stats["n_trials"], stats["n_failed"], stats["best_value"]) == (3, 3, None)
    assert all((tmp_path / "out" / name).exists() for name in [*FILES, *PLOTS])


def test_ctrl_c_keeps_what_has_finished_and_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, script("search"), str(recipe)]
    process = subprocess.Popen(
        [*command, "--n_trials", "500"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "all_trials.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command continues from there" in errors
    assert "Traceback" not in errors
    stats = read_json(tmp_path / "out" / "study_stats.json")
    assert stats["n_completed"] >= 1
    database = sqlite3.connect(tmp_path / "out" / "study.db")
    assert database.execute("select count(*) from trials where state='RUNNING'").fetchone() == (0,)
    total = stats["n_trials"] + 1
    assert run_program("search", recipe, "--n_trials", total).status == 0
    assert read_json(tmp_path / "out" / "study_stats.json")["n_trials"] == total


WRONG = [
    (["training.learnig_rate=1"], "did you mean 'learning_rate'"),
    (["space.learning_rate.low=1"], "low must be below high"),
    (["lora=null"], "space.lora_r: this recipe trains without LoRA"),
    (["search.sampler.name=tpo"], "did you mean 'tpe'"),
    (["data.train=missing.csv"], "missing.csv"),
    (["data.dialogue_column=dialog_text"], "dialog_text"),
    (["output_dir=/proc/nothing"], "cannot be written"),
    (["model.name=./no_such_folder"], "no_such_folder"),
    (["search.storage=postgresql://u:canary@127.0.0.1:1/x"], "cannot be used"),
    (["data.max_dialogue_tokens=4000"], "128 positions"),
    (["nonsense"], "key.path=value"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_a_wrong_recipe_ends_with_a_short_message_and_status_2(
    overrides: list[str], message: str, recipe: Path
) -> None:
    done = run_program("search", recipe, *overrides)
    assert done.status == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.splitlines()) <= 6
    assert "canary" not in done.stderr + done.stdout
