"""The internals of transformers' Trainer that are overridden still have the form we rely on."""

from __future__ import annotations

import inspect

import pytest
from transformers import Seq2SeqTrainer

from hpo_summarize.training.trainer import SummarizationTrainer

PARENT_SIGNATURES = {
    "call_model_init": ["self", "trial"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "evaluation_loop": [
        "self",
        "dataloader",
        "description",
        "prediction_loss_only",
        "ignore_keys",
        "metric_key_prefix",
    ],
    "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
    "hyperparameter_search": [
        "self",
        "hp_space",
        "compute_objective",
        "n_trials",
        "direction",
        "backend",
        "hp_name",
        "kwargs",
    ],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "get_eval_dataloader": ["self", "eval_dataset"],
    "_determine_best_metric": ["self", "metrics", "trial"],
    "_evaluate": ["self", "trial", "ignore_keys_for_eval", "skip_scheduler"],
    "_get_eval_sampler": ["self", "eval_dataset"],
    "_get_output_dir": ["self", "trial"],
    "_get_train_sampler": ["self", "train_dataset"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_rng_state": ["self", "output_dir"],
}


def overridden() -> set[str]:
    mro = SummarizationTrainer.__mro__
    classes = mro[: mro.index(Seq2SeqTrainer)]
    own = {name for one in classes for name in vars(one)}
    return {name for name in own if callable(getattr(Seq2SeqTrainer, name, None))} - {
        "__init__",
        "__class__",
    }


def test_every_overridden_method_is_listed_here() -> None:
    assert {name for name in overridden() if not name.startswith("__")} == set(PARENT_SIGNATURES)


@pytest.mark.parametrize("name", sorted(PARENT_SIGNATURES))
def test_the_parent_method_has_the_parameters_we_rely_on(name: str) -> None:
    parameters = inspect.signature(getattr(Seq2SeqTrainer, name)).parameters
    assert list(parameters) == PARENT_SIGNATURES[name]


def test_our_search_has_the_signature_of_the_parents() -> None:
    ours = inspect.signature(SummarizationTrainer.hyperparameter_search).parameters
    theirs = inspect.signature(Seq2SeqTrainer.hyperparameter_search).parameters
    assert [(p.name, p.default, p.kind) for p in ours.values()] == [
        (p.name, p.default, p.kind) for p in theirs.values()
    ]
