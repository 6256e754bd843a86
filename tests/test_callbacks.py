"""The pruning callback, called by hand and in a whole study with stock trainers."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from transformers import Seq2SeqTrainer, TrainerControl, TrainerState, TrainingArguments

from hpo_summarize import OptunaPruningCallback
from hpo_summarize.errors import HpoError, MissingMetric
from hpo_summarize.training.callbacks import find_metric
from hpo_summarize.training.trainer import SummarizationTrainer


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


ENDS_INSIDE = [
    ({"num_train_epochs": 0.5}, {1: 2}),
    ({"max_steps": 1}, {1: 1}),
    ({"num_train_epochs": 1.5}, {1: 4, 2: 6}),
    ({"num_train_epochs": 3, "eval_steps": 7}, {1: 7, 3: 12}),
]


@pytest.mark.parametrize(("length", "reported"), ENDS_INSIDE, ids=str)
def test_the_last_evaluation_is_reported_where_a_training_ends_inside_an_epoch(
    length: dict[str, Any], reported: dict[int, int], make_trainer: Any
) -> None:
    trial = optuna.create_study(pruner=FixedPruner(False)).ask()
    callback = OptunaPruningCallback(trial, lambda metrics: trainer.state.global_step)
    options = {"eval_strategy": "steps", "eval_steps": 1, "per_device_train_batch_size": 4}
    trainer = make_trainer(Seq2SeqTrainer, {"callbacks": [callback]}, **{**options, **length})
    trainer.train_dataset = trainer.train_dataset.select(range(16))  # 4 steps an epoch.
    trainer.train()
    assert trial.study.trials[0].intermediate_values == reported


def test_a_part_of_an_epoch_does_not_prune(make_trainer: Any) -> None:
    trial = optuna.create_study(pruner=FixedPruner(True)).ask()
    callbacks = {"callbacks": [OptunaPruningCallback(trial, "eval_loss")]}
    make_trainer(Seq2SeqTrainer, callbacks, num_train_epochs=0.5).train()
    assert list(trial.study.trials[0].intermediate_values) == [1]


MONITORS: list[Any] = [
    "eval_second_loss",
    "first_loss",
    lambda metrics: metrics["eval_first_loss"] + metrics["eval_second_loss"],
]


@pytest.mark.parametrize("monitor", MONITORS, ids=["second", "first", "function"])
@pytest.mark.parametrize("prunes", [True, False])
def test_the_metrics_of_several_evaluation_sets_are_taken_together(
    prunes: bool, monitor: Any, make_trainer: Any, tokens: Any
) -> None:
    trial = optuna.create_study(pruner=FixedPruner(prunes)).ask()
    sets = {"first": tokens.select(range(4)), "second": tokens.select(range(4, 10))}
    callback = OptunaPruningCallback(trial, monitor)
    options = {"callbacks": [callback], "eval_dataset": sets}
    trainer = make_trainer(Seq2SeqTrainer, options, num_train_epochs=2)
    if prunes:
        with pytest.raises(optuna.TrialPruned, match="after epoch 1"):
            trainer.train()
    else:
        trainer.train()
    logs: dict[float, dict[str, float]] = {}
    for entry in trainer.state.log_history:
        logs.setdefault(entry["epoch"], {}).update(entry)
    expected = {epoch: find_metric(logs[epoch], monitor) for epoch in ((1,) if prunes else (1, 2))}
    assert trial.study.trials[0].intermediate_values == expected


def test_a_metric_that_no_evaluation_set_has_is_missing_with_those_of_all_sets(
    make_trainer: Any, tokens: Any
) -> None:
    callback = OptunaPruningCallback(optuna.create_study().ask(), "eval_loss")
    sets = {"first": tokens.select(range(4)), "second": tokens.select(range(4, 10))}
    trainer = make_trainer(Seq2SeqTrainer, {"callbacks": [callback], "eval_dataset": sets})
    with pytest.raises(MissingMetric, match="'eval_loss'; .*eval_first_loss.*eval_second_loss"):
        trainer.train()


def test_a_search_has_the_metrics_of_all_evaluation_sets_in_its_objective(
    make_trainer: Any, tokens: Any
) -> None:
    sets = {"first": tokens.select(range(4)), "second": tokens.select(range(4, 10))}
    trainer = make_trainer(SummarizationTrainer, {"eval_dataset": sets}, num_train_epochs=2)
    study = optuna.create_study(pruner=FixedPruner(False))
    seen: list[dict[str, float]] = []

    def objective(metrics: dict[str, float]) -> float:
        seen.append(metrics)
        return metrics["eval_first_loss"] + metrics["eval_second_loss"]

    best = trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
        objective,
        n_trials=2,
        study=study,
    )
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    assert [list(trial.intermediate_values) for trial in study.trials] == [[1, 2]] * 2
    for trial in study.trials:
        assert trial.value == min(trial.intermediate_values.values())
    assert best.objective == study.best_value
    assert all({"eval_first_runtime", "eval_second_runtime"} <= metrics.keys() for metrics in seen)


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
