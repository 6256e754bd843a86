"""What a search does before its first trial, and what it leaves alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import test_search_command
import torch
from datasets import Dataset
from programs import run_program
from transformers import AutoModelForSeq2SeqLM

from hpo_summarize import OptunaOptimizer
from hpo_summarize.config.loader import load_recipe
from hpo_summarize.console import print_search_plan
from hpo_summarize.errors import HpoError, RecipeError, StudyError
from hpo_summarize.launch.workers import Worker
from hpo_summarize.output_dir import clear_debug_folder, prepare_folder
from hpo_summarize.reporting.plots import write_plots
from hpo_summarize.reporting.report import write_report
from hpo_summarize.reporting.summary import write_results

recipe = test_search_command.recipe


def files_of(folder: Path) -> set[Path]:
    """Files that a user sees."""
    every = (path for path in folder.rglob("*") if path.is_file())
    return {path for path in every if not path.name.startswith(".")}


@pytest.mark.slow
def test_a_corrected_recipe_begins_the_study_that_the_wrong_one_could_not(
    recipe: Path, tmp_path: Path
) -> None:
    wrong = run_program(
        "search", recipe, "lora.target_modules=[no_such_layer]", "lora.r=2", "--n_trials", 1
    )
    assert wrong.status == 2
    corrected = run_program("search", recipe, "--n_trials", 1)
    assert corrected.status == 0, corrected.stderr
    trials = pd.read_csv(tmp_path / "out" / "all_trials.csv")
    assert list(trials["params_lora_r"]) == [4]


def is_loaded(*args: Any, **kwargs: Any) -> None:
    pytest.fail("the model is loaded")


def test_a_storage_that_is_away_is_found_before_the_model_is_loaded(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", is_loaded)
    away = "postgresql+psycopg://me:canary@127.0.0.1:1/x"
    assert "cannot be used" in run_program("search", recipe, "--storage", away).stderr


@pytest.mark.slow
def test_a_study_of_another_recipe_is_found_before_the_model_is_loaded(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_program("search", recipe, "--n_trials", 1).status == 0
    monkeypatch.setattr(AutoModelForSeq2SeqLM, "from_pretrained", is_loaded)
    refused = run_program("search", recipe, "training.weight_decay=0.1")
    assert refused.status == 2 and "training.weight_decay: was 0.0, now 0.1" in refused.stderr


@pytest.mark.slow
def test_a_study_sees_a_row_that_moves_from_training_to_validation(
    recipe: Path, tmp_path: Path, csv_path: Path
) -> None:
    rows = pd.read_csv(csv_path)
    names = {"train": tmp_path / "train.csv", "validation": tmp_path / "validation.csv"}
    command = [f"data.{name}={path}" for name, path in names.items()]
    for cut in (24, 25):
        rows[:cut].to_csv(names["train"], index=False)
        rows[cut:].to_csv(names["validation"], index=False)
        done = run_program("search", recipe, *command, "--n_trials", 1)
    assert done.status == 2
    assert "data.train (content): was" in done.stderr
    assert "data.validation (content): was" in done.stderr


@pytest.fixture
def debug_folder(recipe: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "out" / "debug"
    folder.mkdir(parents=True)
    return folder


def test_a_debug_run_deletes_nothing_that_no_debug_run_has_written(
    recipe: Path, debug_folder: Path
) -> None:
    (debug_folder / "all_trials.csv").write_text("mine")
    refused = run_program("search", recipe, "--debug")
    assert refused.status == 2
    assert "holds all_trials.csv, which no debug run has written" in refused.stderr
    assert (debug_folder / "all_trials.csv").read_text() == "mine"


@pytest.mark.slow
def test_a_debug_run_begins_anew_after_all_checks_and_keeps_the_files_of_others(
    recipe: Path, debug_folder: Path
) -> None:
    assert run_program("search", recipe, "--debug").status == 0
    first = files_of(debug_folder)
    (debug_folder / "notes.txt").write_text("mine")
    (debug_folder / "trials" / "notes.txt").write_text("mine")
    assert (
        run_program("search", recipe, "--debug", "lora.target_modules=[no_such_layer]").status == 2
    )
    assert first < files_of(debug_folder)
    again = run_program("search", recipe, "--debug", "training.weight_decay=0.1")
    assert again.status == 0, again.stderr
    assert "0 of 2 trials done" in again.stdout
    assert len(pd.read_csv(debug_folder / "all_trials.csv")) == 2
    assert (debug_folder / "notes.txt").read_text() == "mine"
    assert (debug_folder / "trials" / "notes.txt").read_text() == "mine"


def test_a_folder_in_the_place_of_a_result_is_refused(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    refused = run_program("search", recipe)
    assert refused.status == 2 and "report.html is a folder" in refused.stderr
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"):
        refused = run_program("search", recipe, "--output_dir", tmp_path / place)
        assert refused.status == 2 and "cannot be written" in refused.stderr
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "trials").write_text("x")
    refused = run_program("search", recipe, "--output_dir", tmp_path / "other")
    assert refused.status == 2 and "trials is a file" in refused.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a b", "50%", "50%25", "what?", "a#b", "x?y=1&z=2", "한국어"])
def test_an_output_folder_may_have_any_name(name: str, recipe: Path, tmp_path: Path) -> None:
    optimizer = OptunaOptimizer(load_recipe(recipe), output_dir=tmp_path / name)
    optimizer.prepare()
    assert (tmp_path / name / "study.db").stat().st_size > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, recipe.name])


def questions(optimizer: OptunaOptimizer) -> Iterator[Any]:
    yield optimizer.get_best_params
    yield optimizer.get_best_value
    yield lambda: optimizer.save_results("results")
    yield lambda: optimizer.plot_optimization_history("results")


@pytest.mark.parametrize(
    "kind",
    ["default", "sqlite:///{}/other.db", "journal://{}/study.log"]
    + ["sqlite:///{}/gone/other.db", "journal://{}/gone/study.log"],
)
def test_a_question_before_the_first_search_says_so_and_makes_nothing(
    kind: str, recipe: Path, tmp_path: Path
) -> None:
    storage = None if kind == "default" else kind.format(tmp_path)
    optimizer = OptunaOptimizer(load_recipe(recipe), storage=storage)
    before = sorted(tmp_path.rglob("*"))
    for ask in questions(optimizer):
        with pytest.raises(StudyError, match="no study 'tiny' .* yet; call optimize\\(\\) first"):
            ask()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_the_results_of_an_earlier_search_are_read_without_its_data(
    recipe: Path, csv_path: Path, tmp_path: Path
) -> None:
    assert run_program("search", recipe, "--n_trials", 1).status == 0
    later = OptunaOptimizer(load_recipe(recipe, ["data.train=gone.csv"]))
    assert later.get_best_params()["learning_rate"] == 1e-3


@pytest.mark.slow
def test_data_sets_that_are_given_need_no_section_data(
    recipe: Path, rows: list[dict[str, str]], tmp_path: Path
) -> None:
    recipe.write_text(re.sub("train: .*?, validation_fraction: 0.25, ", "", recipe.read_text()))
    with pytest.raises(RecipeError, match="data: neither name nor train is set"):
        OptunaOptimizer(recipe)
    train, validation = Dataset.from_list(rows[:24]), Dataset.from_list(rows[24:])
    optimizer = OptunaOptimizer(recipe, train, validation, n_trials=1)
    optimizer.optimize()
    assert len(optimizer.study.trials) == 1
    with pytest.raises(HpoError, match="given together"):
        OptunaOptimizer(recipe, train)


@pytest.mark.parametrize("form", [list, pd.DataFrame])
def test_rows_that_are_no_data_set_are_refused_with_how_to_make_one(
    form: Any, recipe: Path, rows: list[dict[str, str]]
) -> None:
    made = Dataset.from_list(rows)
    for train, validation, name in ((form(rows), made, "train"), (made, form(rows), "val")):
        with pytest.raises(HpoError) as error:
            OptunaOptimizer(recipe, train, validation)
        wanted = f"{name}_dataset must be a datasets.Dataset, got a {form.__name__}; make one with"
        assert wanted in str(error.value)
        assert "Dataset.from_list(rows) or Dataset.from_pandas(frame)" in str(error.value)


@pytest.mark.slow
def test_a_brute_force_search_ends_with_its_last_combination(recipe: Path, tmp_path: Path) -> None:
    space = "space={batch_size: {type: categorical, choices: [4, 8]}}"
    command = [space, "search.sampler={name: brute_force}", "--n_trials", 5]
    for _ in range(2):
        done = run_program("search", recipe, *command)
        assert done.status == 0, done.stderr
        assert "every combination has been tried, with 2 of 5 trials" in done.stdout
        trials = pd.read_csv(tmp_path / "out" / "all_trials.csv")
        assert sorted(trials["params_batch_size"]) == [4, 8]


@pytest.mark.slow
def test_a_timeout_before_the_end_of_the_first_trial_is_named_as_the_cause(recipe: Path) -> None:
    done = run_program("search", recipe, "--timeout", 0.001)
    assert done.status == 1
    assert "the timeout of 0.001 seconds ended the run before a trial could end" in done.stderr
    assert "pruner" not in done.stderr


@pytest.mark.slow
def test_an_optimizer_can_run_a_trial_of_its_own_before_a_search_and_go_on_after_it(
    recipe: Path, tmp_path: Path
) -> None:
    optimizer = OptunaOptimizer(load_recipe(recipe), n_trials=1)
    own = optuna.create_study(direction="maximize")
    own.optimize(optimizer.objective, n_trials=1)
    assert not (tmp_path / "out" / "study.db").exists()
    assert len(optimizer.optimize().trials) == 1
    assert len(optimizer.optimize().trials) == 1


def test_of_several_workers_of_one_launch_the_first_one_clears_for_all(tmp_path: Path) -> None:
    prepare_folder(tmp_path, debug=True)
    study = tmp_path / "study.db"
    for worker, is_left in ((Worker(1, 2), False), (Worker(0, 2), True), (Worker(), False)):
        study.write_text("of the last run" if not is_left else "of this launch")
        prepare_folder(tmp_path, debug=True)
        clear_debug_folder(tmp_path, worker)
        assert study.exists() == is_left


@pytest.mark.slow
@pytest.mark.parametrize(("n_gpus", "is_said"), [(0, False), (1, False), (4, True)])
def test_a_search_says_that_it_leaves_gpus_unused(
    n_gpus: int,
    is_said: bool,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    optimizer = OptunaOptimizer(recipe)
    optimizer.prepare()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    print_search_plan(optimizer)
    assert ("accelerate launch --num_processes 4" in capsys.readouterr().out) == is_said


@pytest.mark.parametrize("directions", [["maximize"], ["maximize", "minimize"]])
def test_a_debug_run_leaves_no_result_of_the_one_before(
    directions: list[str], tmp_path: Path
) -> None:
    study, decoding = (optuna.create_study(directions=directions) for _ in range(2))
    prepare_folder(tmp_path, debug=True)
    write_results(study, tmp_path, decoding=decoding)
    write_plots(study, tmp_path)
    write_plots(decoding, tmp_path / "decoding")
    write_report(study, tmp_path, decoding=decoding)
    (tmp_path / "decoding" / "notes.txt").write_text("mine")
    clear_debug_folder(tmp_path, Worker())
    assert files_of(tmp_path) == {tmp_path / "decoding" / "notes.txt"}
    (tmp_path / "decoding" / "notes.txt").unlink()
    clear_debug_folder(tmp_path, Worker())
    assert not (tmp_path / "decoding").exists()
