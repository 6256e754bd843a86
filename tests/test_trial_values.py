"""What `hp_space` returns is what a trial is made of: its model, its result, what follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from peft import LoraConfig, get_peft_model
from transformers import BartForConditionalGeneration, TrainerCallback

from hpo_summarize import SummarizationTrainer
from hpo_summarize.errors import HpoError
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.study.trials import values_of
from hpo_summarize.training.checkpoints import TrialFolders
from hpo_summarize.training.ddp import DecidedTrial, FollowedTrial
from hpo_summarize.training.planning import plan_trial
from hpo_summarize.training.runner import load_trial


class Noted(TrainerCallback):
    """Keeps the adapter's rank, the learning rate and the reported values of every training."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float, dict[str, Any]]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        rank = kwargs["model"].peft_config["default"].r
        self.seen.append((rank, args.learning_rate, state.trial_params))


def space(trial: optuna.Trial) -> dict[str, Any]:
    trial.set_user_attr("note", "from hp_space")
    return {
        "lora_r": np.int64(2 ** trial.suggest_int("k", 1, 3)),
        "learning_rate": 10 * trial.suggest_float("learning_rate", 1e-4, 1e-3),
    }


def from_params(trial: Any) -> int:
    return trial.params["lora_r"]


def from_suggest(trial: Any) -> int:
    return trial.suggest_categorical("lora_r", [32, 64])


@pytest.mark.slow
@pytest.mark.parametrize("read", [from_params, from_suggest])
def test_a_derived_value_reaches_the_model_the_result_and_the_storage(
    read: Any, make_trainer: Any, bart_config: Any, tmp_path: Path
) -> None:
    noted, ranks, notes = Noted(), [2, 8, 4], []

    def model_init(trial: Any = None) -> Any:
        model = BartForConditionalGeneration(bart_config())
        if trial is None:
            return model
        notes.append((trial.number, trial.user_attrs.get("note")))
        return get_peft_model(model, LoraConfig(r=int(read(trial)), target_modules="all-linear"))

    trainer = make_trainer(
        SummarizationTrainer,
        {"callbacks": [noted], "model_init": model_init},
        save_strategy="epoch",
    )
    study = optuna.create_study(storage=f"sqlite:///{tmp_path}/study.db")
    for k in (1, 3, 2):
        study.enqueue_trial({"k": k, "learning_rate": 1e-4 * k})
    best = trainer.hyperparameter_search(
        space,
        n_trials=3,
        backend="optuna",
        study=study,
        hp_name=lambda trial: f"{trial.number}-rank-{trial.params['lora_r']}",
    )
    assert [rank for rank, _, _ in noted.seen] == ranks
    assert [rate for _, rate, _ in noted.seen] == pytest.approx([1e-3, 3e-3, 2e-3])
    assert [params["lora_r"] for _, _, params in noted.seen] == ranks
    assert notes == [(number, "from hp_space") for number in range(3)]
    # The sampler learns from what it has drawn, and everything else takes what the trials had.
    assert [set(trial.params) for trial in study.trials] == [{"k", "learning_rate"}] * 3
    assert [values_of(trial)["lora_r"] for trial in study.trials] == ranks
    number = int(best.run_id)
    expected = {"k": study.trials[number].params["k"], "lora_r": ranks[number]}
    assert best.hyperparameters == {**expected, "learning_rate": noted.seen[number][1]}
    (weights,) = (tmp_path / "runs").glob(f"{number}-*/checkpoint-*")
    assert weights.parent.name == f"{number}-rank-{ranks[number]}"
    load_trial(trainer, best.hyperparameters, weights)
    assert trainer.model.peft_config["default"].r == ranks[number]


@pytest.mark.parametrize("derived", [{}, {"weight_decay": 0.25}])
def test_what_hp_space_leaves_out_is_read_as_it_was_sampled(
    derived: dict[str, float], make_trainer: Any, bart_config: Any
) -> None:
    seen = []

    def model_init(trial: Any = None) -> BartForConditionalGeneration:
        dropout = trial.suggest_float("dropout", 0.1, 0.5) if trial else 0.0
        seen.append(dropout)
        return BartForConditionalGeneration(bart_config(dropout=dropout))

    trainer = make_trainer(SummarizationTrainer, {"model_init": model_init})
    best = trainer.hyperparameter_search(lambda trial: derived, n_trials=1, backend="optuna")
    assert best.hyperparameters == {"dropout": seen[1], **derived}


def test_a_value_that_nothing_applies_is_refused_and_a_sampled_helper_is_not(
    make_trainer: Any,
) -> None:
    trainer = make_trainer(SummarizationTrainer)
    with pytest.raises(HpoError, match="'lora_r' .*model_init takes no trial"):
        trainer.set_up_search(space)
    trainer.set_up_search(lambda trial: {"batch_size": 2 ** trial.suggest_int("k", 1, 3)})


def test_a_process_that_follows_builds_the_model_of_the_main_one(tmp_path: Path) -> None:
    study = optuna.create_study()
    study.enqueue_trial({"k": 3, "learning_rate": 1e-4})
    trial = study.ask()
    decided = DecidedTrial(trial, TrialSpec.of({"lora_r": space(trial)["lora_r"].item()}))
    plan = plan_trial(decided, TrialFolders(tmp_path, None), lambda metrics: 0.0, world_size=1)
    followed = FollowedTrial(plan.spec, plan.number, plan.sampled)
    assert followed.params == decided.params
    assert (followed.params["k"], from_params(followed), from_suggest(followed)) == (3, 8, 8)
