"""Models from a configuration, and tokenizers that are trained or loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from model_families import BART, T5, batch, build_model, logits, make_recipe, save_checkpoint
from transformers import (
    PreTrainedTokenizerBase,
)

from hpo_summarize.config.schema import ModelSection
from hpo_summarize.errors import ModelError
from hpo_summarize.models.config import load_config, loading_options
from hpo_summarize.models.tokenizer import (
    add_tokens,
    load_tokenizer,
    spare_rows_note,
    train_tokenizer,
)

TEXTS = ["The meeting is at five, see you there!", "회의는 다섯 시에 시작합니다. 늦지 마세요!"] * 4
SIZES = {"bart": BART, "t5": T5}


# From a configuration.


@pytest.mark.parametrize("model_type, start", [("bart", "</s>"), ("t5", "<pad>")])
def test_a_model_from_a_configuration_has_the_ids_of_its_trained_tokenizer(
    model_type: str, start: str
) -> None:
    own = {"model_type": model_type, "vocab_size": 330, **SIZES[model_type]}
    recipe = make_recipe({"from_config": own})
    tokenizer = train_tokenizer(TEXTS, 330, ["#Person1#"])
    model = build_model(recipe, tokenizer, {"hidden_dropout": 0.25})
    assert model.config.model_type == model_type
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) != 330
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.decoder_start_token_id == tokenizer.convert_tokens_to_ids(start)
    assert recipe.model.from_config == own
    inputs = batch(tokenizer)
    assert logits(model, inputs).isfinite().all()
    del inputs["labels"]
    output = model.generate(**inputs)
    assert output[0, 0] == tokenizer.convert_tokens_to_ids(start)


def test_a_forced_last_token_is_the_tokenizers_own_unless_the_recipe_says_otherwise() -> None:
    tokenizer = train_tokenizer(TEXTS, 330)
    tokenizer.eos_token = "<mask>"
    for given, forced in (({}, tokenizer.eos_token_id), ({"forced_eos_token_id": 7}, 7)):
        own = {"model_type": "bart", **SIZES["bart"], **given}
        model = build_model(make_recipe({"from_config": own}), tokenizer, {})
        assert model.generation_config.forced_eos_token_id == forced


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"model_type": "brat"}, "no model type 'brat'; did you mean 'bart'"),
        ({"model_type": "bart", "d_modle": 8}, "d_modle: .*value 8.; did you mean 'd_model'"),
        ({"model_type": "bart", "d_model": "wide"}, "no model can be made of .*'d_model'"),
    ],
)
def test_a_wrong_configuration_is_refused_with_the_field_and_its_value(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_config(ModelSection(from_config=fields))
    assert caught.value.exit_status == 2
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_configuration_that_no_model_can_have_is_refused() -> None:
    own = {"model_type": "bart", **SIZES["bart"], "d_model": 17}
    with pytest.raises(ModelError, match="no model can be made of .* divisible by num_heads"):
        build_model(make_recipe({"from_config": own}), train_tokenizer(TEXTS, 330), {})


def test_a_second_name_of_a_field_is_known() -> None:
    own = {"model_type": "t5", "hidden_size": 16, "num_hidden_layers": 3}
    config = load_config(make_recipe({"from_config": own}).model)
    assert (config.d_model, config.num_layers) == (16, 3)


# Tokenizers.


def test_a_trained_tokenizer_is_the_same_for_the_same_texts_and_loses_nothing() -> None:
    special = ["#Person1#"]
    first, second = (train_tokenizer(iter(TEXTS), 330, special) for _ in range(2))
    assert first.get_vocab() == second.get_vocab()
    for text in (*TEXTS[:2], "#Person1#: 처음 보는 글자 뷁, naïve 🙂\n두 줄"):
        ids = first(text)["input_ids"]
        assert ids == second(text)["input_ids"]
        assert (ids[0], ids[-1]) == (first.bos_token_id, first.eos_token_id)
        assert first.decode(ids, skip_special_tokens=True) == text
    assert len(first(TEXTS[0])["input_ids"]) < len(TEXTS[0].encode())
    roles = [first.bos_token, first.pad_token, first.eos_token, first.unk_token, first.mask_token]
    assert first.convert_tokens_to_ids(roles) == [0, 1, 2, 3, 4]
    assert first.tokenize("Yes #Person1#!").count("#Person1#") == 1


def test_special_tokens_are_added_once_and_stay_in_decoded_text(checkpoint: Path) -> None:
    section = make_recipe(checkpoint).model
    own = load_tokenizer(section)
    tokenizer = load_tokenizer(section, ["#Person1#", "#New#"])
    assert len(tokenizer) == len(own) + 1
    add_tokens(tokenizer, ["#New#"])
    assert len(tokenizer) == len(own) + 1
    ids = tokenizer("#New# met #Person1#.")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "#New# met #Person1#."


def test_a_tokenizer_of_another_place_is_loaded_without_the_models_revision(tmp_path: Path) -> None:
    train_tokenizer(TEXTS, 300, ["#Other#"]).save_pretrained(tmp_path)
    model = {"name": "someone/something", "tokenizer": str(tmp_path), "revision": "0123abc"}
    section = make_recipe(model).model
    assert "#Other#" in load_tokenizer(section).get_vocab()
    assert loading_options(section, "someone/something")["revision"] == "0123abc"
    assert "revision" not in loading_options(section, str(tmp_path))


def test_a_folder_without_tokenizer_is_refused_in_place_of_an_empty_one(
    checkpoint_copy: Path,
) -> None:
    for file in checkpoint_copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match="holds no tokenizer .*tokenizer.json.*model.tokenizer"):
        load_tokenizer(make_recipe(checkpoint_copy).model)


def test_a_broken_tokenizer_is_refused(checkpoint_copy: Path) -> None:
    (checkpoint_copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded from the folder"):
        load_tokenizer(make_recipe(checkpoint_copy).model)


@pytest.mark.parametrize("role", ["pad_token", "eos_token"])
def test_a_tokenizer_without_padding_or_end_is_refused(role: str, checkpoint_copy: Path) -> None:
    path = checkpoint_copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {role: None}))
    with pytest.raises(ModelError, match=f"has no {role}, .* set {role} in its tokenizer_config"):
        load_tokenizer(make_recipe(checkpoint_copy).model)


def test_a_configuration_without_tokenizer_has_none_to_load() -> None:
    with pytest.raises(ModelError, match="model.tokenizer is not set, .* train_tokenizer"):
        load_tokenizer(make_recipe({"from_config": {"model_type": "bart"}}).model)


def test_a_vocabulary_larger_than_the_models_is_refused(checkpoint: Path) -> None:
    tokenizer = train_tokenizer([chr(n) * 2 for n in range(0x4E00, 0x4E80)], 700)
    assert len(tokenizer) > 400
    with pytest.raises(ModelError, match=r"tokenizer has \d+ tokens .* set model.tokenizer"):
        build_model(make_recipe(checkpoint), tokenizer, {})


def test_spare_embeddings_are_no_error_and_many_of_them_are_worth_a_note(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    for spare, is_noted in ((100, False), (1500, True)):
        rows = len(tokenizer) + spare
        recipe = make_recipe(save_checkpoint(tmp_path, "bart", tokenizer, vocab_size=rows))
        assert build_model(recipe, tokenizer, {}).get_input_embeddings().num_embeddings == rows
        note = spare_rows_note(tokenizer, rows)
        assert (note is not None) == is_noted
        assert note is None or f"embeddings for {rows}" in note
