"""A long search neither grows nor fills the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest

from hpo_summarize import SummarizationTrainer

MEGABYTE = 2**20


def search(trainer: Any, n_trials: int, **options: Any) -> optuna.Study:
    study = optuna.create_study()
    trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)},
        n_trials=n_trials,
        backend="optuna",
        study=study,
        **options,
    )
    return study


def test_memory_does_not_grow_over_fifty_trials(make_trainer: Any) -> None:
    sizes: list[int] = []

    def note(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        sizes.append(psutil.Process().memory_info().rss)

    search(make_trainer(SummarizationTrainer), 50, callbacks=[note])
    assert len(sizes) == 50
    assert sizes[-1] - sizes[9] < 40 * MEGABYTE


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_only_the_best_trials_keep_weights(keep: int, make_trainer: Any, tmp_path: Path) -> None:
    trainer = make_trainer(SummarizationTrainer, save_strategy="epoch", num_train_epochs=2)
    study = search(trainer, 5, keep_trials=keep)
    best = sorted(study.trials, key=lambda trial: (trial.value, trial.number))[:keep]
    kept = {path.name for path in (tmp_path / "runs").glob("*")}
    assert kept == {f"run-{trial.number}" for trial in best}
    for folder in kept:
        files = {path.name for path in (tmp_path / "runs" / folder).glob("checkpoint-*/*")}
        assert "model.safetensors" in files
        assert not files & {"optimizer.pt", "scheduler.pt", "training_args.bin"}
