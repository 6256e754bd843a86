"""Only a folder that a search or a training has made for itself is deleted or replaced."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
from final_models import read_json, search
from programs import run_program, run_well

from hpo_summarize import OptunaOptimizer, SummarizationTrainer
from hpo_summarize.config.loader import load_recipe
from hpo_summarize.errors import HpoError, RecipeError, RunStopped
from hpo_summarize.final_model.export import replace_folder


def run_search(trainer: Any, n_trials: int = 2, **options: Any) -> Any:
    return trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)},
        n_trials=n_trials,
        backend="optuna",
        **options,
    )


def files_below(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def test_a_second_search_in_one_folder_leaves_the_weights_of_the_first(
    make_trainer: Any, tmp_path: Path
) -> None:
    run_search(make_trainer(SummarizationTrainer, save_strategy="epoch"), 3)
    before = files_below(tmp_path)
    assert any(name.endswith("model.safetensors") for name in before)
    (kept,) = (tmp_path / "runs").glob("run-*")
    with pytest.raises(HpoError, match=rf"{kept} is needed .*Move them, .* load_if_exists=True"):
        run_search(make_trainer(SummarizationTrainer, save_strategy="epoch"), 3)
    assert files_below(tmp_path) == before
    other = make_trainer(
        SummarizationTrainer, save_strategy="epoch", output_dir=str(tmp_path / "other")
    )
    run_search(other, 3)


@pytest.mark.slow
def test_a_study_that_goes_on_finds_and_clears_its_own_folders(
    make_trainer: Any, tmp_path: Path
) -> None:
    storage = {"storage": f"sqlite:///{tmp_path}/s.db", "study_name": "s", "load_if_exists": True}
    for n_trials in (2, 4):
        best = run_search(
            make_trainer(SummarizationTrainer, save_strategy="epoch"), n_trials, **storage
        )
        (kept,) = (tmp_path / "runs").iterdir()
        assert kept.name == f"run-{best.run_id}"


@pytest.mark.parametrize(
    "name", [".", "", "../other", "a/../..", "{root}-other", "link/inside", None, "always"]
)
def test_a_name_that_is_no_folder_of_its_own_is_refused_before_anything_is_deleted(
    name: str | None, make_trainer: Any, tmp_path: Path
) -> None:
    root, trained = tmp_path / "runs", []
    for folder in ("runs", "runs-other", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "notes.txt").write_text("mine")
    (root / "link").symlink_to(tmp_path / "other", target_is_directory=True)
    before = files_below(tmp_path)
    with pytest.raises(HpoError, match="hp_name (must return|gave two).*trial.number"):
        run_search(
            make_trainer(SummarizationTrainer, save_strategy="epoch"),
            hp_name=lambda trial: name and name.format(root=root),
            callbacks=[lambda study, trial: trained.append(trial)],
        )
    assert files_below(tmp_path) == before
    assert not trained


def test_a_folder_inside_of_that_of_another_trial_is_refused(
    make_trainer: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(SummarizationTrainer, save_strategy="epoch")
    with pytest.raises(HpoError, match="got 'base/1', which is inside of the folder of another"):
        run_search(trainer, 3, hp_name=lambda t: f"base/{t.number}" if t.number else "base")
    assert list((tmp_path / "runs" / "base").glob("checkpoint-*"))


def test_a_name_that_is_taken_ends_the_run_and_puts_the_trial_back(
    make_trainer: Any, tmp_path: Path
) -> None:
    notes = tmp_path / "runs" / "b" / "1" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    trainer, study = (
        make_trainer(SummarizationTrainer, save_strategy="epoch"),
        optuna.create_study(),
    )
    with pytest.raises(RunStopped, match=f"{notes.parent} is needed .* never deleted"):
        run_search(trainer, study=study, hp_name=lambda trial: f"b/{trial.number}")
    assert notes.read_text() == "mine"
    assert (tmp_path / "runs" / "b" / "0").is_dir()
    notes.unlink()
    run_search(trainer, study=study, hp_name=lambda trial: f"b/{trial.number}")
    assert study.trials[2].params == study.trials[1].params


@pytest.mark.parametrize("name", [".", "..", "...", "a/b", ""])
def test_a_study_name_is_never_that_of_another_folder(name: str, tmp_path: Path) -> None:
    content = {"model": {"name": "x"}, "data": {"train": "t.csv"}, "output_dir": str(tmp_path)}
    with pytest.raises(RecipeError, match="search.study_name"):
        OptunaOptimizer(content, study_name=name)


@pytest.mark.parametrize("file", ["..yaml", "...yaml", "....yaml"])
def test_the_name_of_a_recipe_file_is_never_that_of_another_folder(
    file: str, tmp_path: Path
) -> None:
    path = tmp_path / file
    path.write_text("model: {name: a/b}\ndata: {train: t.csv}\noutput_dir: out\n")
    assert load_recipe(path).search.study_name == "study"


@pytest.fixture(scope="module")
def searched(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search(tmp_path_factory.mktemp("searched") / "s", checkpoint)


@pytest.fixture
def out(searched: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(searched.parent / "out", tmp_path / "out"))


def test_a_study_without_its_file_leaves_the_weights_of_the_one_before(
    searched: Path, out: Path
) -> None:
    (out / "study.db").unlink()
    before = files_below(out / "trials")
    done = run_program("search", searched, f"output_dir={out}")
    assert done.status == 2
    assert "trials/tiny/trial-0 is needed" in done.stderr and "another study_name" in done.stderr
    assert files_below(out / "trials") == before
    assert not (out / "study.db").exists()


@pytest.mark.slow
def test_a_training_replaces_its_model_and_no_file_of_others(searched: Path, out: Path) -> None:
    training = out / "training" / "mine.csv"
    training.parent.mkdir()
    training.write_text("mine")
    model, command = out / "model", (searched, f"output_dir={out}", "training.num_epochs=2")
    model.mkdir()
    (model / "config.json").write_text("{}")  # A checkpoint of the user's.
    refused = run_program("train", *command)
    assert (refused.status, "model, which holds config.json" in refused.stderr) == (2, True)
    assert files_below(model) == {"config.json": b"{}"}
    shutil.rmtree(model)
    run_well("train", *command, "train.save_adapter=false")
    run_well("train", *command)
    assert training.read_text() == "mine"
    assert {path.name for path in training.parent.iterdir()} == {"mine.csv"}
    (model / "sub").mkdir()
    (model / "sub" / "notes.txt").write_text("mine")
    before = files_below(model)
    refused = run_program("train", *command)
    assert (refused.status, "holds sub/notes.txt" in refused.stderr) == (2, True)
    assert files_below(model) == before


def test_a_link_in_the_place_of_a_model_is_replaced_and_its_target_is_kept(tmp_path: Path) -> None:
    target, model = tmp_path / "target", tmp_path / "model"
    target.mkdir()
    (target / "notes.txt").write_text("mine")
    model.symlink_to(target)
    for text in ("first", "second"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "weights").write_text(text)
        replace_folder(tmp_path / "new", model)
    assert files_below(model) == {"weights": b"second"}
    assert files_below(target) == {"notes.txt": b"mine"}
    assert {path.name for path in tmp_path.iterdir()} == {"target", "model"}


@pytest.mark.slow
def test_an_upload_that_fails_leaves_the_training_for_the_same_command(
    searched: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uploaded: list[dict[str, bytes]] = []

    def upload_well(folder: Path, name: str) -> str:
        uploaded.append(files_below(folder))
        return ""

    # `upload` itself fails: without a network, as everywhere in the tests.
    at = "hpo_summarize.final_model.retrain"
    monkeypatch.setattr(f"{at}.make_repository", lambda name: None)
    command = (searched, f"output_dir={out}", "train.push_to_hub=me/model")
    failed = run_program("train", *command)
    assert failed.status == 1
    assert f"the model is in {out / 'model'}, but was not uploaded" in failed.stderr
    assert read_json(out / "model" / "scores.json")["scores"]
    monkeypatch.setattr(f"{at}.upload", upload_well)
    again = run_well("train", *command)
    assert "epochs on" in failed.stdout and "epochs on" not in again.stdout
    assert uploaded == [files_below(out / "model")]
    assert not (out / "training").exists() and not list(out.glob(".model*"))
