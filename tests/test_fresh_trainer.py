"""Each trial has a trainer of its own, made from the user's as it is when the trial begins."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hpo_summarize import SummarizationTrainer


class Weighted(SummarizationTrainer):
    """A subclass with an argument, a loss and a prediction step of its own."""

    def __init__(self, weight: float, *args: Any, **kwargs: Any) -> None:
        self.seen: list[tuple[Any, Any, float]] = []
        super().__init__(*args, **kwargs)
        self.weight, self.n_predicted = weight, 0
        self.shared = {"n_predicted": 0}

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().compute_loss(*args, **kwargs)
        return (loss[0] * self.weight, loss[1]) if isinstance(loss, tuple) else loss * self.weight

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self.seen.append((self, self.args, self.args.learning_rate))
        return super().training_step(*args, **kwargs)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        self.shared["n_predicted"] += 1
        return super().prediction_step(*args, **kwargs)


class Corrected(SummarizationTrainer):
    """A subclass that corrects what its parent's `__init__` has set, and builds models itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.built: list[Any] = []
        self.seen: list[Any] = []
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = self.can_return_loss = "corrected"
        self.label_names = ["labels", "attention_mask"]
        self.optimizer_cls_and_kwargs = torch.optim.SGD, {"lr": 0.5}
        self.compute_loss_func = self.no_loss

    @staticmethod
    def no_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        return outputs["logits"].sum() * 0 + 7

    def call_model_init(self, trial: Any = None) -> Any:
        self.built.append(None if trial is None else trial.number)
        return super().call_model_init(trial)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        settings = self.model_accepts_loss_kwargs, self.can_return_loss, self.label_names
        self.seen.append((*settings, type(self.optimizer.optimizer)))
        return super().training_step(*args, **kwargs)


class Scoring(SummarizationTrainer):
    """A subclass that gives a method of its own as the metric, and keeps something from it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rates: list[float] = []
        super().__init__(*args, **kwargs)
        self.compute_metrics = self.score

    def score(self, prediction: Any) -> dict[str, float]:
        self.scored_with = self.args.learning_rate
        return {"n": 1.0}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        metrics = super().evaluate(*args, **kwargs)
        self.rates.append(self.scored_with)
        return metrics


def search(trainer: Any, space: Any = lambda trial: {}, n_trials: int = 1, **options: Any) -> Any:
    return trainer.hyperparameter_search(space, n_trials=n_trials, backend="optuna", **options)


def test_a_subclass_keeps_its_arguments_its_loss_and_its_prediction_step(make_trainer: Any) -> None:
    values = []
    for weight in (1.0, 3.0):
        trainer = make_trainer(functools.partial(Weighted, weight), learning_rate=1e-12)
        values.append(search(trainer).objective)
        assert trainer.shared["n_predicted"] == 2
    assert values[1] == pytest.approx(3 * values[0], rel=1e-5)


def test_every_trial_has_a_trainer_and_arguments_of_its_own(make_trainer: Any) -> None:
    trainer = make_trainer(functools.partial(Weighted, 1.0), learning_rate=0.5)
    search(trainer, lambda trial: {"learning_rate": 0.1 / (trial.number + 1)}, n_trials=2)
    trainers = list(dict.fromkeys(one for one, _, _ in trainer.seen))
    assert len(trainers) == 2 and trainer not in trainers
    assert {rate for _, _, rate in trainer.seen} == {0.1, 0.05}
    assert len({id(args) for _, args, _ in trainer.seen}) == 2
    assert (trainer.args.learning_rate, trainer.optimizer) == (0.5, None)
    assert trainer.model is trainers[1].model
    assert trainer.train().global_step == 4


def test_what_a_subclass_corrects_after_its_parent_acts_in_its_trials(make_trainer: Any) -> None:
    trainer = make_trainer(Corrected)
    best = search(trainer, n_trials=2)
    settings = "corrected", "corrected", ["labels", "attention_mask"], torch.optim.SGD
    assert trainer.seen and all(seen == settings for seen in trainer.seen)
    assert best.objective == pytest.approx(7)
    assert trainer.built == [None, 0, 1]


def test_a_method_that_is_the_metric_is_one_of_the_trials_trainer(make_trainer: Any) -> None:
    trainer = make_trainer(Scoring, learning_rate=0.5)
    search(trainer, lambda trial: {"learning_rate": 0.1 / (trial.number + 1)}, n_trials=2)
    assert trainer.rates == [0.1, 0.05]
    trainer.evaluate()
    assert trainer.rates == [0.1, 0.05, 0.5]


class Count(TrainerCallback):
    """Counts trainings."""

    n_begun = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.n_begun += 1


def test_what_is_set_after_the_trainer_was_made_acts_in_its_trials(
    make_trainer: Any, tokens: Any
) -> None:
    early, late, sizes = Count(), Count(), []

    def compute_metrics(prediction: Any) -> dict[str, float]:
        sizes.append(len(prediction.predictions))
        return {"n": 1.0}

    parts = {"callbacks": [early]}
    trainer = make_trainer(
        SummarizationTrainer, parts, predict_with_generate=True, generation_max_length=4
    )
    trainer.eval_dataset, trainer.compute_metrics = tokens.select(range(3)), compute_metrics
    trainer.remove_callback(early)
    trainer.add_callback(late)
    search(trainer, n_trials=2)
    assert (early.n_begun, late.n_begun, sizes) == (0, 2, [3, 3])
    assert trainer.compute_metrics is compute_metrics
    assert late in trainer.callback_handler.callbacks


def test_noise_and_smoothing_of_one_trial_end_with_it(make_trainer: Any) -> None:
    trainer = make_trainer(SummarizationTrainer)
    values = {"neftune_noise_alpha": 5.0, "label_smoothing_factor": 0.5}
    search(trainer, lambda trial: {} if trial.number else values, n_trials=2)
    assert trainer.args.neftune_noise_alpha is None and trainer.neftune_noise_alpha is None
    own = trainer.evaluate()["eval_loss"]
    plain = make_trainer(SummarizationTrainer, {"model": trainer.model})
    assert plain.evaluate()["eval_loss"] == own
