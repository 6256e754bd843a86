"""The decoding of a trial's model, and the positions that it has for it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from model_families import (
    POSITIONS,
    batch,
    build_model,
    make_recipe,
)
from transformers import (
    BartForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from hpo_summarize.errors import ModelError
from hpo_summarize.models.config import check_lengths, load_config


@pytest.fixture
def warnings_of_transformers(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], str]]:
    """Reads what transformers logs."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_warning()
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    yield lambda: caplog.text
    transformers.logging.set_verbosity(before)


# Decoding.


@pytest.fixture
def decoding(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the checkpoint with decoding of its own, as facebook/bart-large-cnn has."""

    def make(**fields: Any) -> Path:
        folder = tmp_path / "decoding"
        model = BartForConditionalGeneration.from_pretrained(checkpoint)
        model.save_pretrained(folder)
        ids = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
        GenerationConfig(**ids, **fields).save_pretrained(folder)
        return folder

    return make


OWN = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True, "no_repeat_ngram_size": 3}


def test_the_own_decoding_of_a_checkpoint_stays_where_the_recipe_says_nothing(
    decoding: Callable[..., Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    generation = {"max_new_tokens": 7, "length_penalty": 0.8}
    recipe = make_recipe(decoding(**OWN, max_length=62), generation=generation)
    config = build_model(recipe, tokenizer, {}).generation_config
    assert {name: getattr(config, name) for name in OWN} == {**OWN, "length_penalty": 0.8}
    assert (config.max_new_tokens, config.max_length) == (7, None)
    assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (1, 2, 2)


def test_padding_is_the_tokenizers_where_the_checkpoint_has_none(
    checkpoint_copy: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    path = checkpoint_copy / "generation_config.json"
    fields = json.loads(path.read_text())
    del fields["pad_token_id"]
    path.write_text(json.dumps(fields))
    model = build_model(make_recipe(checkpoint_copy), tokenizer, {})
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(
    "generation, own, longest",
    [
        ({"max_new_tokens": 7}, {"max_length": 20}, 8),
        ({"max_new_tokens": 9, "min_new_tokens": 9}, {"min_length": 20, "max_length": 30}, 10),
    ],
)
def test_a_length_in_the_recipe_replaces_those_of_the_checkpoint(
    generation: dict[str, int],
    own: dict[str, int],
    longest: int,
    decoding: Callable[..., Path],
    tokenizer: PreTrainedTokenizerBase,
    warnings_of_transformers: Callable[[], str],
) -> None:
    recipe = make_recipe(decoding(**own), generation=generation)
    model = build_model(recipe, tokenizer, {}).eval()
    model.generation_config.eos_token_id = None  # So that nothing but the limit ends the output.
    inputs = batch(tokenizer)
    del inputs["labels"]
    assert model.generate(**inputs).shape == (1, longest)
    assert "length" not in warnings_of_transformers()


@pytest.mark.parametrize(
    "own, values, gone",
    [
        (OWN, {"num_beams": 1}, ["early_stopping", "length_penalty"]),
        ({"do_sample": True, "temperature": 0.6}, {"do_sample": False}, ["temperature"]),
    ],
)
def test_a_trial_that_switches_beams_or_sampling_off_can_still_be_saved(
    own: dict[str, Any],
    values: dict[str, Any],
    gone: list[str],
    decoding: Callable[..., Path],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    recipe = make_recipe(decoding(**own))
    assert getattr(build_model(recipe, tokenizer, {}).generation_config, gone[0]) == own[gone[0]]
    model = build_model(recipe, tokenizer, values)
    model.generation_config.update(**values)  # As the trainer does.
    model.save_pretrained(tmp_path / "saved")
    written = json.loads((tmp_path / "saved" / "generation_config.json").read_text())
    assert not written.keys() & set(gone)


# Positions.


def test_as_many_new_tokens_as_positions_can_be_generated_and_one_more_is_refused(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(folders["bart"], generation={"max_new_tokens": POSITIONS})
    model = build_model(recipe, tokenizer, {}).eval()
    model.generation_config.eos_token_id = None
    inputs = batch(tokenizer)
    del inputs["labels"]
    assert model.generate(**inputs).shape == (1, POSITIONS + 1)
    recipe = make_recipe(folders["bart"], generation={"max_new_tokens": POSITIONS + 1})
    with pytest.raises(ModelError, match="generation.max_new_tokens is 65, .* 64 positions"):
        build_model(recipe, tokenizer, {})


@pytest.mark.parametrize(
    "parameter",
    [
        {"type": "int", "low": 8, "high": 80},
        {"type": "categorical", "choices": [12, 80]},
    ],
)
def test_a_space_that_reaches_beyond_the_positions_is_refused(
    parameter: dict[str, Any], folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    space = {"max_new_tokens": parameter}
    with pytest.raises(ModelError, match="space.max_new_tokens is 80, .* 64 positions"):
        build_model(make_recipe(folders["bart"], space=space), tokenizer, {})
    assert build_model(make_recipe(folders["t5"], space=space), tokenizer, {})


@pytest.mark.parametrize("key", ["max_dialogue_tokens", "max_summary_tokens"])
def test_training_texts_longer_than_the_positions_are_refused(
    key: str, folders: dict[str, Path]
) -> None:
    data = {"train": "x", "max_dialogue_tokens": 64, "max_summary_tokens": 64}
    recipe = make_recipe(folders["bart"], data=data)
    check_lengths(load_config(recipe.model), recipe)
    recipe = make_recipe(folders["bart"], data={**data, key: 65})
    with pytest.raises(ModelError, match=f"data.{key} is 65, .* set it to 64 or less"):
        check_lengths(load_config(recipe.model), recipe)
