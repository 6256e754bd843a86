"""Epochs are measured cheaply, and a trial's value in full: once, and only where it can matter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from transformers import AutoTokenizer

from hpo_summarize import OptunaOptimizer
from hpo_summarize.study.user_attrs import BEATEN, BEST_EPOCH, EPOCH_VALUE
from hpo_summarize.training.epoch_eval import MIN_FULL, highest_value, why_beaten

SPACE = {
    "learning_rate": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
    "num_beams": {"type": "categorical", "choices": [2, 4]},
}


@pytest.fixture
def make_optimizer(checkpoint: Path, csv_path: Path, tmp_path: Path) -> Any:
    def make(n_trials: int = 1, training: Any = (), **search: Any) -> OptunaOptimizer:
        recipe = {
            "model": {"name": str(checkpoint)},
            "data": {
                "train": str(csv_path),
                "validation_fraction": 0.4,
                "max_dialogue_tokens": 100,
                "max_summary_tokens": 30,
            },
            "training": {"num_epochs": 3, "batch_size": 8, "learning_rate": 3e-3, **dict(training)},
            "generation": {"num_beams": 4, "max_new_tokens": 12},
            "search": {"n_trials": n_trials, "pruner": None, "study_name": "s", **search},
            "space": SPACE,
            "output_dir": str(tmp_path / "out"),
        }
        return OptunaOptimizer(recipe)

    return make


def count_decodings(optimizer: OptunaOptimizer) -> list[tuple[int, int]]:
    """Rows and beams of every evaluation, as they happen."""
    seen: list[tuple[int, int]] = []
    score = optimizer.experiment.score

    def noted(summaries: Any, references: Any) -> Any:
        config = optimizer.trainer.model.generation_config
        seen.append((len(summaries), config.num_beams or 1))
        return score(summaries, references)

    optimizer.experiment.score = noted  # type: ignore[method-assign]
    return seen


def kept_checkpoint(optimizer: OptunaOptimizer, number: int) -> Path:
    (folder,) = (optimizer.output_dir / "trials" / "s" / f"trial-{number}").glob("checkpoint-*")
    return folder


@pytest.mark.slow
def test_epochs_are_decoded_greedily_on_a_subset_and_the_end_in_full(make_optimizer: Any) -> None:
    optimizer = make_optimizer(epoch_eval={"samples": 5, "num_beams": 1})
    seen = count_decodings(optimizer)
    (trial,) = optimizer.optimize().trials
    rows = len(optimizer.experiment.splits[1])
    assert rows > 5
    assert seen == [(5, 1)] * 3 + [(rows, 4)]
    assert trial.user_attrs[EPOCH_VALUE] == trial.intermediate_values[trial.user_attrs[BEST_EPOCH]]


@pytest.mark.slow
def test_the_value_is_that_of_the_kept_weights_on_all_rows_with_the_trials_own_decoding(
    make_optimizer: Any,
) -> None:
    optimizer = make_optimizer(2, epoch_eval={"samples": 4, "num_beams": 1})
    study = optimizer.optimize()
    best = study.best_trial
    folder = kept_checkpoint(optimizer, best.number)
    from transformers import BartForConditionalGeneration

    model = BartForConditionalGeneration.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    validation = optimizer.experiment.splits[1]
    inputs = tokenizer(validation.dialogues, padding=True, return_tensors="pt")
    decoding = {"num_beams": best.params["num_beams"], "max_new_tokens": 12}
    ids = model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **decoding)
    scores = optimizer.experiment.score(optimizer.experiment.decode(ids), validation.references)
    assert best.value == pytest.approx(scores["rougeL"], abs=1e-12)


@pytest.mark.slow
def test_with_all_rows_and_the_same_beams_the_value_is_that_of_the_best_epoch(
    make_optimizer: Any,
) -> None:
    optimizer = make_optimizer(epoch_eval={"samples": "all", "num_beams": "same"})
    seen = count_decodings(optimizer)
    (trial,) = optimizer.optimize().trials
    assert seen == [(len(optimizer.experiment.splits[1]), 4)] * 3
    assert trial.value == max(trial.intermediate_values.values())
    assert EPOCH_VALUE not in trial.user_attrs


@pytest.mark.slow
def test_nothing_is_measured_twice_where_the_cheap_way_is_the_whole(make_optimizer: Any) -> None:
    optimizer = make_optimizer(epoch_eval={"samples": 500, "num_beams": 4})
    seen = count_decodings(optimizer)
    (trial,) = optimizer.optimize().trials
    assert len(seen) == 3
    assert trial.value == trial.user_attrs[EPOCH_VALUE] == max(trial.intermediate_values.values())


@pytest.mark.slow
def test_the_weights_of_the_best_epoch_are_kept_whatever_metric_the_trainer_goes_by(
    make_optimizer: Any,
) -> None:
    restless = {"scheduler_type": "constant", "learning_rate": 1e-2, "num_epochs": 4}
    optimizer = make_optimizer(training=restless)
    optimizer.trainer.args.metric_for_best_model = "eval_rouge1"
    optimizer.trainer.args.greater_is_better = False
    (trial,) = optimizer.optimize().trials
    epochs = trial.intermediate_values
    assert trial.user_attrs[BEST_EPOCH] == max(epochs, key=lambda epoch: epochs[epoch])
    state = json.loads((kept_checkpoint(optimizer, 0) / "trainer_state.json").read_text())
    assert state["epoch"] == trial.user_attrs[BEST_EPOCH]


def test_every_trial_is_compared_on_the_same_rows(make_optimizer: Any) -> None:
    chosen = [
        make_optimizer(epoch_eval={"samples": 4}).trainer.epoch_evaluation.dataset["input_ids"]
        for _ in range(2)
    ]
    assert list(chosen[0]) == list(chosen[1])
    assert len(chosen[0]) == 4


def add_trial(study: optuna.Study, early: float, value: float) -> None:
    study.add_trial(optuna.trial.create_trial(value=value, user_attrs={EPOCH_VALUE: early}))


@pytest.mark.parametrize("sign", [1, -1])
def test_only_a_trial_that_can_be_among_the_best_is_measured_in_full(sign: int) -> None:
    study = optuna.create_study(direction="maximize" if sign == 1 else "minimize")
    for early, value in ((0.30, 0.33), (0.40, 0.42), (0.20, 0.24), (0.35, 0.38)):
        add_trial(study, sign * early, sign * value)
    assert why_beaten(study, sign * 0.01, 1) is None, "four trials say too little"
    add_trial(study, sign * 0.38, sign * 0.41)
    assert MIN_FULL == 5
    # Gains of 0.03, 0.02, 0.04, 0.03, 0.03: mean 0.03, standard deviation 0.00707.
    assert why_beaten(study, sign * 0.37, 1) is None
    assert "trial 1 has" in (why_beaten(study, sign * 0.36, 1) or "")
    assert why_beaten(study, sign * 0.36, 2) is None
    assert why_beaten(study, sign * 0.01, 9) is None, "of nine best trials five are there"


def test_the_highest_value_lies_three_standard_deviations_above_the_mean_gain() -> None:
    assert highest_value(0.5, [0.01, 0.02, 0.03]) == pytest.approx(0.5 + 0.02 + 3 * 0.01)


@pytest.mark.slow
def test_a_beaten_trial_is_pruned_with_its_reason_after_its_last_epoch(make_optimizer: Any) -> None:
    optimizer = make_optimizer(6, epoch_eval={"samples": 5}, keep_trials=1)
    optimizer.prepare()
    for _ in range(MIN_FULL):
        optimizer.study.add_trial(
            optuna.trial.create_trial(
                value=0.99,
                user_attrs={EPOCH_VALUE: 0.98, BEST_EPOCH: 1},
                intermediate_values={1: 1},
            )
        )
    seen = count_decodings(optimizer)
    trial = optimizer.optimize().trials[0]
    assert trial.state.name == "PRUNED"
    assert sorted(trial.intermediate_values) == [1, 2, 3]
    assert "not measured in full" in trial.user_attrs[BEATEN]
    assert {rows for rows, _ in seen} == {5}


@pytest.mark.slow
def test_a_loader_that_persists_does_not_bring_the_whole_split_into_an_epoch(
    make_optimizer: Any,
) -> None:
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    optimizer = make_optimizer(training=workers, epoch_eval={"samples": 4, "num_beams": 1})
    seen = count_decodings(optimizer)
    optimizer.optimize()
    assert [rows for rows, _ in seen] == [4, 4, 4, len(optimizer.experiment.splits[1])]
