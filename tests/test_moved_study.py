"""A study or a folder that is removed or replaced in the middle of a search is noticed."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from final_models import read_json, write_recipe
from programs import run_program, run_well
from transformers import TrainerCallback

from hpo_summarize import SummarizationTrainer
from hpo_summarize.config.schema import SearchSection
from hpo_summarize.errors import RunStopped, StudyMoved
from hpo_summarize.study.run import open_study, run_study
from hpo_summarize.study.user_attrs import FAILURE


def open_in(folder: Path, kind: str) -> optuna.Study:
    url = f"{kind}:///{folder / 'study'}"
    return open_study(SearchSection(), "moved", url, ["maximize"])


def remove_file(folder: Path, kind: str) -> None:
    for path in folder.glob("study*"):
        if path.is_file():
            path.unlink()


def replace_file(folder: Path, kind: str) -> None:
    remove_file(folder, kind)
    open_in(folder, kind)


def remove_folder(folder: Path, kind: str) -> None:
    shutil.rmtree(folder)


def replace_folder(folder: Path, kind: str) -> None:
    shutil.rmtree(folder)
    (folder / "trials").mkdir(parents=True)
    open_in(folder, kind)


def move_folder(folder: Path, kind: str) -> None:
    folder.rename(folder.with_name("elsewhere"))


def remove_trials(folder: Path, kind: str) -> None:
    shutil.rmtree(folder / "trials")


@pytest.mark.parametrize(
    "spoil, what, there",
    [
        (remove_file, "study was removed", "trials is still there"),
        (replace_file, "study was replaced", "trials is still there"),
        (remove_folder, "study was removed", "nothing else is left"),
        (replace_folder, "study was replaced", "nothing else is left"),
        (move_folder, "study was removed or moved", "nothing else is left"),
        (remove_trials, "trials was removed", "study is still there"),
    ],
)
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_search_whose_study_is_removed_stops_after_the_trial(
    spoil: Any, what: str, there: str, kind: str, tmp_path: Path
) -> None:
    folder, begun = tmp_path / "out", []
    (folder / "trials").mkdir(parents=True)

    def objective(trial: optuna.Trial) -> float:
        begun.append(trial.number)
        value = trial.suggest_float("x", 0, 1)
        if trial.number == 1:
            spoil(folder, kind)
        return value

    study = open_in(folder, kind)
    with pytest.raises(StudyMoved, match=f"{what}.*{there}.*same command again"):
        run_study(study, objective, 4, folder=folder / "trials")
    assert begun == [0, 1]
    # A journal cannot be written at its new place; its trial is requeued by the next run.
    if spoil is move_folder and kind == "sqlite":
        folder.with_name("elsewhere").rename(folder)
        run_study(open_in(folder, kind), lambda trial: trial.suggest_float("x", 0, 1), 4)
    if spoil is replace_file:
        assert open_in(folder, kind).trials == []


def test_a_study_that_is_gone_at_the_last_trial_is_no_result(tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        remove_file(tmp_path, "sqlite")
        return 0.5

    with pytest.raises(StudyMoved, match=r"the best trial so far, 0, has \[0.5\] with {}"):
        run_study(open_in(tmp_path, "sqlite"), objective, 1)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///study.db"])
def test_a_study_that_stays_where_it_is_goes_on_in_another_working_directory(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = optuna.create_study(storage=url)

    def objective(trial: optuna.Trial) -> float:
        monkeypatch.chdir(tmp_path.parent)
        return 0.5

    run_study(study, objective, 2, folder=Path("."))
    assert len(study.trials) == 2


def test_a_study_in_memory_is_not_lost_with_a_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    study = optuna.create_study()
    run_study(study, lambda trial: shutil.rmtree(tmp_path) or 1.0, 1, folder=tmp_path / "runs")
    assert len(study.trials) == 1


def test_a_trial_that_fails_without_its_folder_is_requeued(
    make_trainer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "run-0"

    class Spoil(TrainerCallback):
        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            if folder.exists():
                folder.rename(tmp_path / "elsewhere")
                (folder / "checkpoint-1").joinpath("model.safetensors").read_bytes()

    trainer = make_trainer(SummarizationTrainer, {"callbacks": [Spoil()]})
    study = optuna.create_study()
    space = {"n_trials": 1, "backend": "optuna", "study": study}
    with pytest.raises(RunStopped, match=f"{folder} was removed"):
        trainer.hyperparameter_search(lambda trial: {"learning_rate": 1e-3}, **space)
    trainer.hyperparameter_search(lambda trial: {"learning_rate": 1e-3}, **space)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE"]
    assert FAILURE not in study.trials[0].user_attrs


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil, kind", [(remove_folder, "sqlite"), (move_folder, "sqlite"), (remove_folder, "journal")]
)
def test_a_search_without_its_output_folder_names_no_result_that_is_not_there(
    spoil: Any, kind: str, checkpoint: Path, tmp_path: Path
) -> None:
    recipe, out = write_recipe(tmp_path / "s", checkpoint), tmp_path / "s" / "out"

    def spoil_after_a_trial() -> None:
        while not (out / "trials" / "tiny" / "trial-1").exists():
            time.sleep(0.02)
        spoil(out, kind)

    storage = f"search.storage={kind}:///{out}/study.db"
    thread = threading.Thread(target=spoil_after_a_trial)
    thread.start()
    out.mkdir()
    done = run_program("search", recipe, "search.n_trials=20", storage)
    thread.join()
    assert (done.status, done.stderr.count("\n")) == (1, 1)
    assert "was removed or moved away while the search ran" in done.stderr
    # A journal that is gone cannot be read.
    assert ("the best trial so far, 0, has" in done.stderr) == (kind == "sqlite")
    assert "results in" not in done.stdout and "(20/20)" not in done.stdout
    assert not (out / "best_params.json").exists()
    if spoil is move_folder:
        shutil.rmtree(out, ignore_errors=True)  # What the trial has written since.
        out.with_name("elsewhere").rename(out)
        n_trials = read_json(out / "study_stats.json")["n_completed"] + 2
        assert (
            f"({n_trials}/{n_trials})"
            in run_well("search", recipe, f"search.n_trials={n_trials}").stdout
        )
