"""A training and its evaluations are those of `Seq2SeqTrainer`, also beside and after a search."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    EarlyStoppingCallback,
    GPT2Config,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
)

from hpo_summarize import SummarizationTrainer
from hpo_summarize.decoder import own_random_numbers
from hpo_summarize.final_model.train import SkipEvaluations
from hpo_summarize.models.outputs import OUTPUTS, difference_from

CLASSES = [Seq2SeqTrainer, SummarizationTrainer]
GENERATING = {"predict_with_generate": True, "generation_max_length": 6}


@pytest.mark.slow
@pytest.mark.parametrize("args", [{}, GENERATING, {"label_smoothing_factor": 0.1, **GENERATING}])
def test_losses_and_weights_are_those_of_the_stock_trainer_with_dropout_and_evaluations(
    args: dict[str, Any], make_trainer: Any, bart_config: Any, tokenizer: Any
) -> None:
    histories, weights = [], []
    for trainer_class in CLASSES:
        parts = {
            "model_init": lambda: BartForConditionalGeneration(bart_config(dropout=0.5)),
            "compute_metrics": (lambda p: {"n": len(p.predictions)}) if args else None,
            "data_collator": DataCollatorForSeq2Seq(
                tokenizer, BartForConditionalGeneration(bart_config())
            ),
        }
        own = {"num_train_epochs": 3, "logging_steps": 1, "learning_rate": 1e-2, **args}
        # Stock counts every batch as a full one.
        own["per_device_eval_batch_size"] = 5
        trainer = make_trainer(trainer_class, parts, **own)
        trainer.train()
        history = [e.get("loss", e.get("eval_loss")) for e in trainer.state.log_history[:-1]]
        histories.append(history)
        weights.append(trainer.model.state_dict())
    assert len(set(histories[0])) == 15
    assert histories[1] == pytest.approx(histories[0], rel=1e-6)
    if "label_smoothing_factor" not in args:  # Its terms are added up in another order.
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
def test_a_training_without_its_evaluations_ends_with_the_same_weights(
    make_trainer: Any, bart_config: Any
) -> None:
    """As the final training, of which the trial is to be repeated."""
    weights, evaluated = [], []
    for callbacks in ([], [SkipEvaluations()]):
        parts = {
            "model_init": lambda: BartForConditionalGeneration(bart_config(dropout=0.5)),
            "compute_metrics": lambda prediction: {"n": 1.0},
            "callbacks": callbacks,
        }
        steps = {"eval_strategy": "steps", "eval_steps": 3, "num_train_epochs": 2}
        trainer = make_trainer(SummarizationTrainer, parts, **steps, **GENERATING)
        trainer.train()
        weights.append(trainer.model.state_dict())
        evaluated.append(len(losses_of(trainer)))
    assert evaluated == [3, 0]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def losses_of(trainer: Any) -> list[float]:
    return [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("greater, n_epochs", [(False, 6), (True, 3)])
def test_early_stopping_in_a_trial_follows_its_metric_and_the_objective_the_checkpoint(
    greater: bool, n_epochs: int, make_trainer: Any, tmp_path: Path
) -> None:
    """The loss and the objective fall from the first epoch on."""
    seen = []
    for trainer_class in CLASSES:
        trainer = make_trainer(
            trainer_class,
            {"callbacks": [EarlyStoppingCallback(early_stopping_patience=2)]},
            num_train_epochs=6,
            save_strategy="epoch",
            learning_rate=1e-3,
            per_device_eval_batch_size=5,
            metric_for_best_model="eval_loss",
            greater_is_better=greater,
        )
        if trainer_class is Seq2SeqTrainer:
            trainer.train()
        else:
            best = trainer.hyperparameter_search(
                lambda trial: {},
                lambda metrics: -metrics["epoch"],
                n_trials=2,
                direction="maximize",
                backend="optuna",
            )
        seen.append([*losses_of(trainer), trainer.state.best_metric])
    assert seen[1] == pytest.approx(seen[0], rel=1e-6)
    assert len(seen[0]) == n_epochs + 1
    (weights,) = (tmp_path / "runs" / f"run-{best.run_id}").glob("checkpoint-*")
    assert (weights.name, best.objective) == ("checkpoint-4", -1.0)


@pytest.mark.parametrize("end", ["complete", "pruned", "failed", "none"])
def test_after_a_search_the_trainer_evaluates_and_predicts(
    end: str, make_trainer: Any, bart_config: Any, tokens: Any
) -> None:
    built: list[Any] = []

    def model_init(trial: Any = None) -> BartForConditionalGeneration:
        if trial is not None and trial.number == 1 and end == "failed":
            raise RuntimeError("the test breaks this model")
        built.append(BartForConditionalGeneration(bart_config()))
        return built[-1]

    def compute_objective(metrics: dict[str, float]) -> float:
        if end == "pruned" and len(built) == 3:  # The trainer's own, trial 0's and trial 1's.
            raise optuna.TrialPruned()
        return metrics["eval_loss"]

    trainer = make_trainer(SummarizationTrainer, {"model_init": model_init}, **GENERATING)
    study = optuna.create_study()
    if end == "none":
        study.add_trial(optuna.create_trial(value=1.0))
    n_trials = 1 if end == "none" else 2
    trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
        compute_objective,
        n_trials=n_trials,
        backend="optuna",
        study=study,
    )
    assert len(study.trials) == n_trials
    assert trainer.model is built[-1]
    assert trainer.optimizer is None
    assert trainer.evaluate()["eval_loss"] > 0
    assert len(trainer.predict(tokens.select(range(3))).predictions) == 3


@pytest.mark.parametrize("searched", [False, True])
def test_the_evaluation_loss_is_smoothed_as_in_the_stock_trainer_but_in_a_search_for_smoothing(
    searched: bool, make_trainer: Any, bart_config: Any, tokenizer: Any
) -> None:
    model = BartForConditionalGeneration(bart_config())
    parts = {
        "model_init": lambda: copy.deepcopy(model),
        "data_collator": DataCollatorForSeq2Seq(tokenizer, model),
    }
    args = {"per_device_eval_batch_size": 5, "num_train_epochs": 1, "learning_rate": 1e-12}

    def stock(smoothing: float) -> float:
        made = make_trainer(Seq2SeqTrainer, parts, label_smoothing_factor=smoothing, **args)
        return made.evaluate()["eval_loss"]

    trainer = make_trainer(SummarizationTrainer, parts, label_smoothing_factor=0.3, **args)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(stock(0.3), rel=1e-6)
    space = {"label_smoothing_factor": 0.3} if searched else {}
    best = trainer.hyperparameter_search(lambda trial: space, n_trials=1, backend="optuna")
    assert stock(0.0) != pytest.approx(stock(0.3), rel=1e-4)
    assert best.objective == pytest.approx(stock(0.0 if searched else 0.3), rel=1e-6)


@pytest.mark.parametrize("kind", ["mps", "xpu", "cuda"])
def test_an_evaluation_leaves_the_random_numbers_of_every_kind_of_device_alone(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such device is here: its generator is one of the CPU, behind the functions of torch."""
    state, module = torch.Generator(), torch.get_device_module(kind)
    monkeypatch.setattr(module, "get_rng_state", lambda device: state.get_state())
    monkeypatch.setattr(module, "set_rng_state", lambda new, device: state.set_state(new))
    expected = torch.Generator().manual_seed(3).get_state()
    state.set_state(expected)
    with own_random_numbers(torch.device(kind), 7):
        state.manual_seed(7)  # As `torch.manual_seed` does where there is such a device.
    assert torch.equal(state.get_state(), expected)


class OwnColumn(DataCollatorForSeq2Seq):
    """Reads a column beside the token ids."""

    def __call__(self, features: Any, return_tensors: Any = None) -> Any:
        assert [feature.pop("topic") for feature in features]
        return super().__call__(features, return_tensors)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["torch", "numpy", "own column", "decoder-only", "own loss"])
def test_checkpoints_are_written_of_any_rows_and_models(
    kind: str, make_trainer: Any, tokens: Any, tokenizer: Any, tmp_path: Path
) -> None:
    parts: dict[str, Any] = {"train_dataset": tokens, "eval_dataset": tokens.select(range(4))}
    args: dict[str, Any] = {}
    if kind in ("torch", "numpy"):
        parts = {name: rows.with_format(kind) for name, rows in parts.items()}
    elif kind == "own column":
        parts = {n: rows.add_column("topic", ["x"] * len(rows)) for n, rows in parts.items()}
        parts["data_collator"], args = OwnColumn(tokenizer), {"remove_unused_columns": False}
    elif kind == "decoder-only":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": len(tokenizer)}
        parts = {n: r.map(lambda row: {"labels": row["input_ids"]}) for n, r in parts.items()}
        parts["model_init"] = lambda: GPT2LMHeadModel(GPT2Config(**sizes))
    else:
        parts["compute_loss_func"] = lambda outputs, labels, **kwargs: outputs.logits.mean()
    trainer = make_trainer(SummarizationTrainer, parts, save_strategy="epoch", **args)
    trainer.train()
    (checkpoint,) = (tmp_path / "runs").glob("checkpoint-*")
    assert (checkpoint / OUTPUTS).is_file() == (kind in ("torch", "numpy"))


@pytest.mark.slow
def test_in_mixed_precision_a_training_goes_on_from_its_checkpoint(
    make_trainer: Any, bart_config: Any, tmp_path: Path
) -> None:
    init = {"model_init": lambda: BartForConditionalGeneration(bart_config(init_std=0.5))}
    args = {"bf16": True, "num_train_epochs": 2, "save_strategy": "epoch", "learning_rate": 1e-2}
    make_trainer(SummarizationTrainer, init, **args).train()
    half = tmp_path / "runs" / "checkpoint-4"
    assert difference_from(half / OUTPUTS, AutoModelForSeq2SeqLM.from_pretrained(half)) is None
    trainer = make_trainer(SummarizationTrainer, init, **args)
    trainer.train(resume_from_checkpoint=str(half))
    assert trainer.state.global_step == 8
