"""Every hyperparameter name and its one owner."""

from __future__ import annotations

import re
from typing import Any

import pytest
from peft import LoraConfig
from transformers import GenerationConfig, Seq2SeqTrainingArguments

from hpo_summarize.config.messages import value_problem
from hpo_summarize.config.parameters import (
    MODEL_NAMES,
    condition_of,
    default_values,
    foreign_settings,
    owner_of,
    parameters,
    split_by_owner,
    why_cannot_act,
    why_not_searchable,
)

OWNERS = {
    "lora_r": "lora",
    "lora_alpha": "lora",
    "lora_dropout": "lora",
    "learning_rate": "training",
    "batch_size": "training",
    "num_epochs": "training",
    "warmup_ratio": "training",
    "weight_decay": "training",
    "scheduler_type": "training",
    "temperature": "generation",
    "top_p": "generation",
    "num_beams": "generation",
    "length_penalty": "generation",
    "hidden_dropout": "model",
    "attention_dropout": "model",
    "encoder_layers": "model",
    "decoder_layers": "model",
    "gradient_accumulation_steps": "training",
    "no_repeat_ngram_size": "generation",
    "repetition_penalty": "generation",
    "use_rslora": "lora",
}


@pytest.mark.parametrize(("name", "owner"), OWNERS.items())
def test_each_word_has_its_owner_and_can_be_searched(name: str, owner: str) -> None:
    assert owner_of(name) == owner
    assert why_not_searchable(name) is None
    assert split_by_owner({name: 1})[owner] == {name: 1}


def test_every_row_is_found_under_its_own_name() -> None:
    assert all(row.name == name for name, row in parameters().items())


def test_a_field_with_a_word_has_no_other_name() -> None:
    for field in ("num_train_epochs", "lr_scheduler_type", "r"):
        assert owner_of(field) is None
        assert "use that name" in str(why_not_searchable(field))


def test_every_name_is_a_field_of_the_class_of_its_owner() -> None:
    places: dict[str, Any] = {
        "training": Seq2SeqTrainingArguments.__dataclass_fields__,
        "lora": LoraConfig.__dataclass_fields__,
        "generation": vars(GenerationConfig()),
    }
    for name, row in parameters().items():
        assert (
            name in ("batch_size", "warmup_ratio", *MODEL_NAMES) or row.field in places[row.owner]
        )


@pytest.mark.parametrize(
    ("name", "default"),
    [("learning_rate", 5e-5), ("num_epochs", 3.0), ("lora_r", 8), ("num_beams", 1)]
    + [("batch_size", 8), ("warmup_ratio", 0.0), ("temperature", 1.0), ("do_sample", False)],
)
def test_the_defaults_are_those_of_hugging_face(name: str, default: object) -> None:
    assert default_values()[name] == default


def test_values_are_sorted_by_owner_and_kept_as_they_are() -> None:
    values = {"lora_r": 8, "hidden_dropout": 0.1, "num_train_epochs": 2, "top_p": 0.9}
    assert split_by_owner(values) == {
        "model": {"hidden_dropout": 0.1},
        "lora": {"lora_r": 8},
        "training": {"num_train_epochs": 2},
        "generation": {"top_p": 0.9},
    }


def test_sorting_refuses_a_name_without_an_owner() -> None:
    with pytest.raises(ValueError, match="'learning_rat' .value 1.*did you mean 'learning_rate'"):
        split_by_owner({"learning_rat": 1})


def test_a_script_may_search_seeds_and_fields_by_their_own_names() -> None:
    assert why_cannot_act("seed") is None
    assert why_cannot_act("num_train_epochs") is None
    assert "luck" in str(why_not_searchable("seed"))
    assert "fixed for the whole run" in str(why_cannot_act("logging_steps"))
    for name in ("max_length", "generation_max_length"):
        assert "search max_new_tokens" in str(why_cannot_act(name))


@pytest.mark.parametrize(
    ("name", "condition", "value", "acts"),
    [
        ("temperature", "do_sample", True, True),
        ("temperature", "do_sample", False, False),
        ("top_k", "do_sample", None, False),
        ("length_penalty", "num_beams", 2, True),
        ("length_penalty", "num_beams", 1, False),
        ("early_stopping", "num_beams", None, False),
        ("warmup_ratio", "scheduler_type", "linear", True),
        ("warmup_steps", "scheduler_type", "constant", False),
    ],
)
def test_sampling_and_beam_parameters_act_only_under_their_condition(
    name: str, condition: str, value: object, acts: bool
) -> None:
    needs = condition_of(name)
    assert needs is not None and needs.name == condition
    assert needs.holds(value) is acts


def test_other_parameters_have_no_condition() -> None:
    assert condition_of("learning_rate") is None
    assert condition_of("no_repeat_ngram_size") is None


@pytest.mark.parametrize(
    ("name", "inside", "outside", "message"),
    [
        ("learning_rate", 1e-9, 0, "must be greater than 0, got 0"),
        ("batch_size", 1, 0, "must be greater than or equal to 1, got 0"),
        ("top_p", 1.0, 1.1, "must be less than or equal to 1, got 1.1"),
        ("lora_dropout", 0.0, 1.0, "must be less than 1, got 1.0"),
        ("warmup_steps", 0.1, -1, "must be greater than or equal to 0, got -1"),
        ("top_k", 0, -(10**400), "must be greater than or equal to 0, got -1000"),
        ("top_p", 1, True, "must be a valid number, got True"),
        ("scheduler_type", "linear", -1, "must be 'linear', 'cosine'.*, got -1"),
        ("optim", "sgd", "adamw_torhc", "'adamw_torch'.*; did you mean 'adamw_torch'"),
    ],
)
def test_a_value_outside_of_its_type_or_bounds_is_named(
    name: str, inside: object, outside: object, message: str
) -> None:
    kind = parameters()[name].type
    assert value_problem(inside, kind) is None
    assert re.search(message, str(value_problem(outside, kind)))


def test_of_a_checkpoints_decoding_only_what_it_sets_itself_is_foreign() -> None:
    assert foreign_settings(GenerationConfig(max_new_tokens=9, use_cache=True), ()) == {}
    own = GenerationConfig(min_length=56, output_scores=True, num_beams=4)
    assert foreign_settings(own, ()) == {"min_length": 56, "output_scores": True}
    assert foreign_settings(own, {"min_length"}) == {"output_scores": True}
