"""A search that is killed at any moment, again and again, comes to the end of one left alone."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState
from search_process import start_search

from hpo_summarize.study.storage import build_storage
from hpo_summarize.study.trials import finished_trials
from hpo_summarize.study.user_attrs import CONTINUES

N_KILLS = 10

# Every combination is tried once, whatever the order, so that the values of two runs compare.
RECIPE = """
model: {{name: {checkpoint}}}
lora: {{r: 4, alpha: 8}}
data: {{train: {csv}, validation_fraction: 0.25, max_dialogue_tokens: 100, max_summary_tokens: 30}}
training: {{num_epochs: 3, batch_size: 8, learning_rate: 1e-3}}
generation: {{num_beams: 1, max_new_tokens: 16}}
search: {{n_trials: 6, keep_trials: 2, pruner: null, sampler: {{name: brute_force, seed: 1}}}}
space:
  learning_rate: {{type: categorical, choices: [1e-3, 3e-3, 1e-2]}}
  lora_r: {{type: categorical, choices: [4, 8]}}
output_dir: {output}
"""

Values = dict[tuple[tuple[str, float], ...], tuple[float, dict[int, float]]]


def write_recipe(folder: Path, checkpoint: Path, csv: Path) -> Path:
    folder.mkdir()
    path = folder / "kills.yaml"
    path.write_text(RECIPE.format(checkpoint=checkpoint, csv=csv, output=folder / "out"))
    return path


def study_of(recipe: Path) -> optuna.Study:
    url = f"sqlite:///{recipe.parent / 'out' / 'study.db'}"
    return optuna.load_study(study_name="kills", storage=build_storage(url))


def values_of(recipe: Path) -> Values:
    """Value and reported values of each finished trial by its parameters."""
    return {
        tuple(sorted(trial.params.items())): (trial.value, trial.intermediate_values)
        for trial in finished_trials(study_of(recipe))
    }


def finished_values(recipe: Path) -> dict[int, list[float]]:
    try:
        return {trial.number: trial.values for trial in finished_trials(study_of(recipe))}
    except Exception:  # Killed before there was a study.
        return {}


def wait_for_a_running_trial(recipe: Path, search: BaseProcess) -> None:
    while search.is_alive():
        with suppress(Exception):  # There is no study yet.
            if study_of(recipe).get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                return
        time.sleep(0.02)


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_no_value_and_lose_no_trial(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    clean = write_recipe(tmp_path / "clean", checkpoint, csv_path)
    began = time.monotonic()
    undisturbed = start_search(tmp_path / "clean.log", str(clean))
    undisturbed.join()
    seconds = time.monotonic() - began
    assert undisturbed.exitcode == 0, (tmp_path / "clean.log").read_text()
    recipe = write_recipe(tmp_path / "killed", checkpoint, csv_path)
    draw, log, known = random.Random(4), tmp_path / "killed.log", {}
    for number in range(N_KILLS):
        process = start_search(log, str(recipe))
        # Every other one hits a trial that has begun, however slow the start was.
        if number % 2:
            wait_for_a_running_trial(recipe, process)
        process.join(draw.uniform(0.0, 0.1 if number % 2 else 0.4) * seconds)
        process.kill()
        process.join()
        now = finished_values(recipe)
        assert now | known == now, "a finished value has changed"
        known = now
    last = start_search(log, str(recipe))
    last.join()
    assert last.exitcode == 0, log.read_text()
    study = study_of(recipe)
    assert len(finished_trials(study)) == 6
    assert not [t for t in study.trials if t.state.name in ("RUNNING", "WAITING")]
    assert [t for t in study.trials if CONTINUES in t.user_attrs], "no trial was cut off"
    assert finished_values(recipe) | known == finished_values(recipe)
    assert values_of(recipe) == values_of(clean)
    assert "Traceback" not in log.read_text()
    kept = sorted((tmp_path / "killed" / "out" / "trials" / "kills").iterdir())
    assert len(kept) == 2
    assert all(list(folder.glob("checkpoint-*/adapter_model.safetensors")) for folder in kept)
