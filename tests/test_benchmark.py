"""scripts/benchmark.py on a tiny model: every method for real, its files, its table, its resume."""

from __future__ import annotations

import contextlib
import io
import json
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from benchmarking.methods import Job, search_unpruned
from benchmarking.observation import Observation
from benchmarking.schedule import RunFailed, run_missing
from benchmarking.stock import build_stock_trainer
from benchmarking.summary import summarise, table_rows
from conftest import REPOSITORY, make_rows
from programs import restored_signals
from transformers import AutoModelForSeq2SeqLM

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import load_recipe
from hpo_summarize.errors import HpoError
from hpo_summarize.rouge import Rouge
from hpo_summarize.study.user_attrs import EPOCH_VALUE

SCRIPT = str(REPOSITORY / "scripts" / "benchmark.py")
RECIPE = """
model: {{name: {checkpoint}}}
data:
  train: {csv}
  test: {test}
  validation_fraction: 0.25
  max_dialogue_tokens: 100
  max_summary_tokens: 30
training: {{num_epochs: 2, batch_size: 8, learning_rate: 1e-3}}
generation: {{num_beams: 2, max_new_tokens: 12}}
search: {{n_trials: 2}}
space:
  learning_rate: {{type: float, low: 1e-3, high: 1e-1, log: true}}
  num_epochs: {{type: int, low: 2, high: 3}}
  batch_size: {{type: categorical, choices: [4, 8]}}
  warmup_ratio: {{type: float, low: 0.3, high: 0.6}}
  hidden_dropout: {{type: float, low: 0.0, high: 0.3}}
  num_beams: {{type: categorical, choices: [1, 2]}}
  length_penalty: {{type: float, low: 0.5, high: 2.0}}
output_dir: unused
"""
METHODS = ["stock", "train_once", "joint"]


def run_script(*arguments: Any) -> int:
    """Runs the program in this process; returns its exit status."""
    before, sys.argv = sys.argv, [SCRIPT, *map(str, arguments)]
    try:
        with restored_signals():
            runpy.run_path(SCRIPT, run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = before
    return 0


@pytest.fixture(scope="module")
def recipe(checkpoint: Path, csv_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    rows = [{**row, "summary2": "They meet."} for row in make_rows(6, seed=1)]
    pd.DataFrame(rows).rename(columns={"summary": "summary1"}).to_csv(folder / "test.csv")
    text = RECIPE.format(checkpoint=checkpoint, csv=csv_path, test=folder / "test.csv")
    path = folder / "tiny.yaml"
    path.write_text(text)
    return path


@dataclass
class Benchmark:
    """A finished benchmark of one seed, run by two commands; its folder and what each printed."""

    folder: Path
    test: Path
    first: str
    second: str


@pytest.fixture(scope="module")
def benchmark(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Benchmark:
    folder = tmp_path_factory.mktemp("benchmark")
    arguments = ["--recipe", recipe, "--seeds", 1, "--output", folder, "--jobs", 2]
    printed = []
    for methods in (METHODS[:2], METHODS):
        with contextlib.redirect_stdout(io.StringIO()) as text:
            # Models that are too small to beat a constant summary: nothing can be compared.
            assert run_script(*arguments, "--methods", *methods) == 1
        printed.append(text.getvalue())
        (folder / "work" / "joint-1").mkdir(exist_ok=True)
        (folder / "work" / "joint-1" / "study.db").write_text("of a run that was cut off")
    return Benchmark(folder, recipe.parent / "test.csv", *printed)


@pytest.fixture(scope="module")
def output(benchmark: Benchmark) -> Path:
    return benchmark.folder


@pytest.fixture(scope="module")
def runs(output: Path) -> dict[str, dict[str, Any]]:
    """The records by method, from the file with everything."""
    content = json.loads((output / "benchmark.json").read_text())
    return {run["method"]: run for run in content["runs"]}


def test_a_benchmark_writes_its_files_and_leaves_no_checkpoints(output: Path) -> None:
    names = {path.name for path in output.iterdir()}
    assert {"recipe.yaml", "start", "runs", "winners", "benchmark.json", "table.md"} <= names
    assert not list((output / "work").rglob("*.safetensors"))
    page = (output / "benchmark.html").read_text()
    assert "nothing can be compared" in page and "Plotly.newPlot(" not in page


@pytest.mark.parametrize("method", METHODS)
def test_the_texts_of_a_winner_are_kept_and_counted_beside_the_best_constant_summary(
    method: str, runs: dict[str, Any], benchmark: Benchmark
) -> None:
    texts = json.loads((benchmark.folder / "winners" / f"{method}-1.json").read_text())
    assert sorted(texts) == [f"row_{number}" for number in range(6)]
    test = pd.read_csv(benchmark.test)
    references = test[["summary1", "summary2"]].to_numpy().tolist()
    found = Rouge().compute(predictions=list(texts.values()), references=references)
    assert runs[method]["test"] == found
    n_distinct = len({" ".join(text.split()) for text in texts.values()})
    assert runs[method]["summaries"]["n_distinct"] == n_distinct
    constant = json.loads((benchmark.folder / "benchmark.json").read_text())["best_constant"]
    row = (
        f"| {method}, seed 1 | {found['rougeL']:.4f} | {constant['score']:.4f} | {n_distinct} of 6"
    )
    assert f"{row} | no |" in benchmark.second
    assert f"its winner writes {n_distinct} distinct summaries for 6 test" in (
        benchmark.first + benchmark.second
    )


def test_the_table_has_the_figures_of_the_runs(runs: dict[str, Any]) -> None:
    head, *rows = table_rows(summarise(list(runs.values()), "rougeL"))
    assert head == ["", *METHODS]
    table = {row[0]: dict(zip(METHODS, row[1:], strict=True)) for row in rows}
    for method, run in runs.items():
        states = [trial["state"] for trial in run["trials"]]
        assert table["trials complete"][method] == str(states.count("COMPLETE"))
        assert table["trials pruned"][method] == str(states.count("PRUNED"))
        assert table["whole search, CPU s"][method] == f"{run['cpu_seconds']:.0f}"
        assert table["rougeL of the winner, on test"][method] == f"{run['test']['rougeL']:.4f}"
        assert table["generated tokens"][method] == str(run["n_generated_tokens"])
    assert table["to the best value of stock, stock / this, CPU"]["stock"] == "1.0"


@pytest.mark.parametrize("method", METHODS)
def test_the_kept_weights_of_a_winner_give_the_value_that_its_search_reports(
    method: str, runs: dict[str, Any]
) -> None:
    run = runs[method]
    assert run["best_value"] > 0
    assert run["validation"]["rougeL"] == pytest.approx(run["best_value"], abs=1e-9)
    complete = [t["value"] for t in run["trials"] if t["value"] is not None]
    assert run["best_value"] == max(complete)


@pytest.mark.parametrize("method", METHODS)
def test_the_time_of_a_search_is_divided_without_rest(method: str, runs: dict[str, Any]) -> None:
    run = runs[method]
    spent = run["spent"]
    for clock in ("wall", "cpu"):
        parts = [part[clock] for part in spent.values()]
        assert sum(parts) == pytest.approx(run[f"{clock}_seconds"])
        assert all(seconds > 0 for seconds in parts)
    ends = [trial["end"] for trial in run["trials"]]
    assert 0 < ends[0]["wall"] < ends[1]["wall"] <= run["wall_seconds"] + 0.5
    assert 0 < ends[0]["cpu"] < ends[1]["cpu"] <= run["cpu_seconds"] + 0.5


def test_the_stock_search_loses_its_warm_up_and_the_others_do_not(
    runs: dict[str, Any], output: Path
) -> None:
    assert [t["warmup_steps"] for t in runs["stock"]["trainings"]] == [0, 0]
    assert all(t["params"]["warmup_ratio"] >= 0.3 for t in runs["stock"]["trials"])
    for method in ("train_once", "joint"):
        for trial, training in zip(runs[method]["trials"], runs[method]["trainings"], strict=True):
            steps = trial["params"]["warmup_ratio"] * training["n_steps"]
            assert training["warmup_steps"] == pytest.approx(steps, abs=1)
    notes = json.loads((output / "benchmark.json").read_text())["stock_notes"]
    assert "cannot search hidden_dropout, length_penalty" in notes[0]
    assert "and ran 0" in notes[1]


def test_stock_reports_optimizer_steps_and_ours_epochs(runs: dict[str, Any]) -> None:
    for trial, training in zip(runs["stock"]["trials"], runs["stock"]["trainings"], strict=True):
        epochs = trial["params"]["num_epochs"]
        steps = [training["n_steps"] // epochs * epoch for epoch in range(1, epochs + 1)]
        assert [int(step) for step in trial["reports"]] == steps
    for trial in runs["joint"]["trials"]:
        assert list(trial["reports"]) == [
            str(epoch + 1) for epoch in range(trial["params"]["num_epochs"])
        ]
    assert all(len(trial["reports"]) == 1 for trial in runs["train_once"]["trials"])


def test_every_method_keeps_the_key_value_cache_on(runs: dict[str, Any]) -> None:
    for run in runs.values():
        assert run["n_generate_calls_without_cache"] == 0
        assert run["n_generated_tokens"] > 0
    assert runs["joint"]["most_models_alive"] == runs["joint"]["most_optimizers_alive"] == 1
    assert runs["stock"]["most_models_alive"] == 2


def test_a_second_command_runs_only_what_is_missing(benchmark: Benchmark) -> None:
    assert all(f"{method}, seed 1: begins" in benchmark.first for method in METHODS[:2])
    assert [line for line in benchmark.second.splitlines() if "begins" in line] == [
        "joint, seed 1: begins"
    ]
    assert (benchmark.folder / "table.md").read_text().strip() in benchmark.second


@pytest.mark.slow
def test_unpruned_measures_every_trial_in_full(recipe: Path, tmp_path: Path) -> None:
    pruning = {"name": "threshold", "lower": 1.0, "n_warmup_steps": 0}
    settings = {"search.pruner": pruning, "search.n_trials": 3, "training.num_epochs": 3}
    with Observation() as observation:
        job = Job(load_recipe(recipe, settings=settings), tmp_path, observation)
        found = search_unpruned(job)
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * 3
    assert all(EPOCH_VALUE in trial.user_attrs for trial in found.trials)
    assert len(list(tmp_path.glob("**/trial-*/checkpoint-*/model.safetensors"))) == 3


WRONG = [
    (["--methods", "stock", "genetic"], "'genetic' is not among stock, train_once, joint"),
    (["--seeds", "0"], "--seeds: must be 1 or more, got 0"),
    (["--jobs", "-1"], "--jobs: must be 1 or more, got -1"),
    (["--n_trials", "0"], "search.n_trials"),
    (["--data", "a.csv"], "data.test: the winners are compared on a test split"),
    (["--test", "a.csv"], "--test: the quick start has a test split of its own, got 'a.csv'"),
    (["--data", "a.csv", "--test", "b.csv"], "a.csv"),
    (["--recipe", "a.yaml", "--data", "b.csv"], "replaces --data"),
    (["--recipe", "missing.yaml"], "missing.yaml: the recipe cannot be read"),
    (["--output", "/proc/nothing"], "--output: /proc/nothing cannot be written"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_command_line_ends_with_a_short_message_and_status_2(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = [] if "--output" in arguments else ["--output", tmp_path]
    assert run_script(*output, *arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err + said.out


def test_a_recipe_that_a_method_cannot_run_is_refused(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        recipe.read_text().replace(
            "search: {",
            "lora: {r: 4}\nsearch: {objective: [rouge1, rougeL], keep_trials: 0, ",
        )
    )
    assert run_script("--recipe", other, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "lora: the methods are compared with all weights trained" in said
    assert "search.objective: the methods are compared by one objective" in said
    assert "search.keep_trials: the weights of the winner are measured again" in said


def test_the_stock_trainer_takes_a_searched_batch_as_it_is(recipe: Path, tmp_path: Path) -> None:
    sizes = ["training.per_device_train_batch_size=2", "training.per_device_eval_batch_size=3"]
    experiment = Experiment(load_recipe(recipe, sizes))
    model = AutoModelForSeq2SeqLM.from_pretrained(str(experiment.recipe.model.name))
    args = build_stock_trainer(experiment, tmp_path, "no", {"batch_size": 16}, model=model).args
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (16, 1)
    assert args.per_device_eval_batch_size == 3


def test_a_folder_of_another_benchmark_is_refused(
    recipe: Path, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("--recipe", recipe, "--n_trials", 3, "--output", output) == 2
    assert "holds a benchmark of another recipe or number of trials" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_that_fails_ends_the_benchmark_with_what_it_said(tmp_path: Path) -> None:
    tmp_path.joinpath("recipe.yaml").write_text("model: {}\n")
    with pytest.raises(RunFailed, match="(?s)'stock' with seed 1 ended with status 2.*data") as end:
        run_missing(tmp_path, ["stock"], [1], jobs=1)
    assert isinstance(end.value, HpoError) and end.value.exit_status == 1
    assert "stock-1.log" in str(end.value)
