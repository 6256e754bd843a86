"""A search that is killed goes on where it was: same command, same total, same values."""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
from search_process import start_search

from hpo_summarize.study.storage import build_storage
from hpo_summarize.study.trials import finished_trials
from hpo_summarize.study.user_attrs import CONTINUES

RECIPE = """
model: {{name: {checkpoint}}}
lora: {{r: 4, alpha: 8}}
data: {{train: {csv}, validation_fraction: 0.25, max_dialogue_tokens: 100, max_summary_tokens: 30}}
training: {{num_epochs: 4, batch_size: 8, learning_rate: 1e-3}}
generation: {{num_beams: 1, max_new_tokens: 16}}
search: {{n_trials: 4, keep_trials: 2, pruner: null}}
space:
  learning_rate: {{type: float, low: 1e-4, high: 1e-2, log: true}}
  hidden_dropout: {{type: float, low: 0.0, high: 0.3}}
output_dir: {output}
"""


@pytest.fixture
def recipe(tmp_path: Path, checkpoint: Path, csv_path: Path) -> Path:
    path = tmp_path / "crash.yaml"
    path.write_text(RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=tmp_path / "out"))
    return path


def study_of(recipe: Path) -> optuna.Study:
    url = f"sqlite:///{recipe.parent / 'out' / 'study.db'}"
    return optuna.load_study(study_name="crash", storage=build_storage(url))


def kill_when(process: BaseProcess, happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while process.is_alive() and time.monotonic() < deadline and not happened():
        time.sleep(0.02)
    process.kill()
    process.join()


def checkpoints(recipe: Path, trial: int) -> list[Path]:
    folder = recipe.parent / "out" / "trials" / "crash" / f"trial-{trial}"
    return sorted(folder.glob("checkpoint-*/trainer_state.json"))


@pytest.mark.slow
def test_a_killed_trial_goes_on_from_its_last_epoch_with_its_values(
    recipe: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    kill_when(start_search(log, str(recipe)), lambda: len(checkpoints(recipe, 1)) > 0)
    before = study_of(recipe).trials
    start_search(log, str(recipe)).join()
    study = study_of(recipe)
    after = study.trials
    assert len(finished_trials(study)) == 4, log.read_text()
    assert not [trial for trial in after if trial.state.name in ("RUNNING", "WAITING")]
    heir = next(trial for trial in after if trial.user_attrs.get(CONTINUES) == 1)
    assert heir.params == before[1].params
    assert after[0].values == before[0].values
    undisturbed = tmp_path / "again.yaml"
    undisturbed.write_text(recipe.read_text().replace("/out", "/again"))
    start_search(log, str(undisturbed)).join()
    url = f"sqlite:///{tmp_path / 'again' / 'study.db'}"
    clean = optuna.load_study(study_name="again", storage=build_storage(url)).trials
    assert heir.values == clean[1].values
    assert heir.intermediate_values == clean[1].intermediate_values
