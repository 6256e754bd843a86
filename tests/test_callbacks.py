"""The pruning callback, called by hand and in a whole study with stock trainers."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from transformers import Seq2SeqTrainer, TrainerControl, TrainerState, TrainingArguments

from hpo_summarize import OptunaPruningCallback
from hpo_summarize.callbacks import find_metric
from hpo_summarize.errors import HpoError, MissingMetric
from hpo_summarize.trainer import SummarizationTrainer


class FixedPruner(optuna.pruners.BasePruner):
    """Prunes always or never."""

    def __init__(self, prunes: bool) -> None:
        self.prunes = prunes

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return self.prunes


def evaluate(callback: OptunaPruningCallback, epoch: float, value: float = 0.5) -> None:
    state = TrainerState(epoch=epoch)
    callback.on_evaluate(None, state, TrainerControl(), metrics={"eval_rougeL": value})


def started(trial: optuna.Trial) -> OptunaPruningCallback:
    callback = OptunaPruningCallback(trial)
    begin(callback)
    return callback


def begin(callback: OptunaPruningCallback) -> None:
    args = TrainingArguments("unused", eval_strategy="epoch")
    callback.on_train_begin(args, TrainerState(), TrainerControl())


def test_a_value_is_reported_once_for_each_finished_epoch() -> None:
    trial = optuna.create_study(pruner=FixedPruner(False)).ask()
    callback = started(trial)
    for epoch, value in ((0.5, 0.1), (1.0, 0.2), (1.5, 0.3), (2.0, 0.4), (2.9999999999, 0.5)):
        evaluate(callback, epoch, value)
    assert trial.study.trials[0].intermediate_values == {1: 0.2, 2: 0.4, 3: 0.5}


def test_an_evaluation_outside_of_training_is_not_reported() -> None:
    trial = optuna.create_study(pruner=FixedPruner(True)).ask()
    callback = started(trial)
    callback.on_train_end(None, TrainerState(), TrainerControl())
    evaluate(callback, 3.0)
    assert trial.study.trials[0].intermediate_values == {}


def test_a_pruner_that_says_stop_ends_the_training() -> None:
    callback = started(optuna.create_study(pruner=FixedPruner(True)).ask())
    with pytest.raises(optuna.TrialPruned, match="pruned after epoch 1 with a value of 0.5"):
        evaluate(callback, 1.0)


def test_a_missing_metric_is_an_error_that_lists_those_there_are() -> None:
    trial = optuna.create_study().ask()
    callback = OptunaPruningCallback(trial, "eval_bleu")
    begin(callback)
    with pytest.raises(MissingMetric, match="no metric 'eval_bleu'; it has eval_rougeL"):
        evaluate(callback, 1.0)


def test_a_metric_is_found_with_and_without_its_prefix() -> None:
    metrics = {"eval_rougeL": 0.25}
    assert find_metric(metrics, "rougeL") == find_metric(metrics, "eval_rougeL") == 0.25


def test_a_study_of_several_objectives_is_refused() -> None:
    trial = optuna.create_study(directions=["maximize", "maximize"]).ask()
    with pytest.raises(ValueError, match="only with one objective, and this study has 2"):
        OptunaPruningCallback(trial)


def test_a_training_without_evaluations_is_refused_before_its_first_step(make_trainer: Any) -> None:
    callback = OptunaPruningCallback(optuna.create_study().ask(), "eval_loss")
    trainer = make_trainer(Seq2SeqTrainer, {"callbacks": [callback]}, eval_strategy="no")
    with pytest.raises(HpoError, match="eval_strategy is 'no' .*; set eval_strategy=\"epoch\""):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_search_whose_trials_are_evaluated_only_at_their_end_runs(make_trainer: Any) -> None:
    trainer = make_trainer(SummarizationTrainer, eval_strategy="no")
    space = {"learning_rate": (1e-4, 1e-3)}
    best = trainer.hyperparameter_search(
        lambda trial: {name: trial.suggest_float(name, *span) for name, span in space.items()},
        lambda metrics: metrics["eval_loss"],
        n_trials=2,
        pruner=FixedPruner(True),
    )
    assert best.objective > 0


@pytest.mark.parametrize(("prunes", "state"), [(True, "PRUNED"), (False, "COMPLETE")])
def test_a_study_over_a_stock_trainer_prunes_by_epoch(
    prunes: bool, state: str, make_trainer: Any, bart_config: Any
) -> None:
    def objective(trial: optuna.Trial) -> float:
        callback = OptunaPruningCallback(trial, "eval_loss")
        trainer = make_trainer(Seq2SeqTrainer, {"callbacks": [callback]}, num_train_epochs=2)
        trainer.train()
        return trainer.evaluate()["eval_loss"]

    study = optuna.create_study(pruner=FixedPruner(prunes))
    study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == [state] * 2
    assert [len(trial.intermediate_values) for trial in study.trials] == [1 if prunes else 2] * 2
