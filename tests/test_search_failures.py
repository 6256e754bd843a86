"""Trials that run out of memory: smaller batches first, and the same training for it."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
import torch
from transformers import BartForConditionalGeneration, TrainerCallback

from hpo_summarize import SummarizationTrainer
from hpo_summarize.errors import SearchFailed


class SmallDevice(BartForConditionalGeneration):
    """Runs out of memory with more than so many examples at once in training."""

    limit = 2
    errors = 0

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None, **kwargs: Any
    ) -> Any:
        if self.training and input_ids.shape[0] > self.limit:
            type(self).errors += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return super().forward(input_ids, attention_mask, labels=labels, **kwargs)


class Steps(TrainerCallback):
    """Notes the per-device batch, the accumulation and the number of steps of each training."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sizes = (args.per_device_train_batch_size, args.gradient_accumulation_steps)
        self.seen.append((*sizes, state.global_step))


def build(model_class: type, bart_config: Any) -> Any:
    return lambda: model_class(bart_config(dropout=0.0))


def search(trainer: Any, n_trials: int, study: optuna.Study | None = None) -> optuna.Study:
    study = study or optuna.create_study()
    trainer.hyperparameter_search(
        lambda trial: {"batch_size": 8}, n_trials=n_trials, backend="optuna", study=study
    )
    return study


def test_out_of_memory_halves_the_batch_and_keeps_the_optimizer_steps(
    make_trainer: Any, bart_config: Any
) -> None:
    values = {}
    for name, model in (("large", BartForConditionalGeneration), ("small", SmallDevice)):
        steps = Steps()
        options = {"model_init": build(model, bart_config), "callbacks": [steps]}
        trainer = make_trainer(SummarizationTrainer, {**options, "model": None})
        study = search(trainer, 2)
        values[name] = [trial.value for trial in study.trials]
        assert steps.seen == [(8, 1, 4)] * 2 if name == "large" else [(2, 4, 4)] * 2
    assert values["small"] == pytest.approx(values["large"], rel=1e-4)


def test_another_process_begins_with_the_batch_that_fits(
    make_trainer: Any, bart_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SmallDevice, "errors", 0)
    options = {"model_init": build(SmallDevice, bart_config), "model": None}
    study = search(make_trainer(SummarizationTrainer, options), 1)
    assert SmallDevice.errors == 2  # With 8 and with 4 examples.
    steps = Steps()
    search(make_trainer(SummarizationTrainer, {**options, "callbacks": [steps]}), 2, study)
    assert SmallDevice.errors == 2
    assert steps.seen == [(2, 4, 4)]


def test_a_trial_that_fits_with_no_batch_fails_with_its_reason(
    make_trainer: Any, bart_config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SmallDevice, "limit", 0)
    options = {"model_init": build(SmallDevice, bart_config), "model": None}
    with pytest.raises(SearchFailed, match="3 trials in a row .* reason: out of memory"):
        search(make_trainer(SummarizationTrainer, options), 5)
