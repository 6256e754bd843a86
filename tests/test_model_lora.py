"""Adapters, the embeddings of new tokens, and models without a trace of the trial before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import (
    CLASSES,
    WITH_DEPTH,
    batch,
    build_model,
    logits,
    make_recipe,
    save_checkpoint,
    train_a_little,
)
from peft import set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerBase

from hpo_summarize.errors import ModelError
from hpo_summarize.models.tokenizer import load_tokenizer

NEW = ["#Mina#", "#Tae#"]
LORA = {"r": 4, "alpha": 8, "dropout": 0.1}
Save = Callable[..., Path]


@pytest.fixture
def save(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Save:
    def make(family: str = "bart", **changes: Any) -> Path:
        return save_checkpoint(tmp_path / "checkpoint", family, tokenizer, **changes)

    return make


def adapters(model: torch.nn.Module) -> dict[str, LoraLayer]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}


def trainable(model: torch.nn.Module) -> list[str]:
    return [name for name, weight in model.named_parameters() if weight.requires_grad]


def test_rank_alpha_dropout_and_targets_are_in_the_real_modules(
    save: Save, tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(save(), lora={**LORA, "target_modules": ["q_proj", "v_proj"]})
    values = {"lora_r": 2, "lora_alpha": 6, "lora_dropout": 0.25}
    for given, rank, scaling, dropout in (({}, 4, 2.0, 0.1), (values, 2, 3.0, 0.25)):
        layers = adapters(build_model(recipe, tokenizer, given))
        assert {name.rsplit(".", 1)[1] for name in layers} == {"q_proj", "v_proj"}
        assert len(layers) == 2 * (2 + 2 * 2)  # Two a self-attention, and two a cross-attention.
        for layer in layers.values():
            assert layer.lora_A["default"].weight.shape == (rank, 16)
            assert layer.scaling["default"] == scaling
            assert layer.lora_dropout["default"].p == dropout


@pytest.mark.parametrize("family", CLASSES)
def test_all_linear_puts_adapters_on_every_linear_layer_but_the_output(
    family: str, save: Save, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = build_model(make_recipe(save(family), lora=LORA), tokenizer, {})
    bare = build_model(make_recipe(save(family)), tokenizer, {})
    linear = {name for name, m in bare.named_modules() if isinstance(m, torch.nn.Linear)}
    found = {name.removeprefix("base_model.model.") for name in adapters(model)}
    assert found == linear - {"lm_head"}
    assert all("lora_" in name for name in trainable(model))


@pytest.mark.parametrize(
    "lora, reason",
    [
        ({"target_modules": "zzz"}, "zzz.* not found"),
        ({"target_modules": "("}, "unterminated"),
        ({"target_modules": ["self_attn"]}, "not supported|BartAttention"),
        ({"trainable_token_indices": [99999]}, "out of bounds"),
    ],
)
def test_adapters_that_cannot_be_put_on_the_model_are_refused(
    lora: dict[str, Any], reason: str, save: Save, tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(save(), lora=lora)
    with pytest.raises(ModelError, match=f"on a 'bart' model .*({reason}).*lora.target_modules"):
        build_model(recipe, tokenizer, {})


def test_pissa_with_a_number_of_iterations_begins_the_adapters(
    save: Save, tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(save(), lora={**LORA, "init_lora_weights": "pissa_niter_4"})
    for layer in adapters(build_model(recipe, tokenizer, {})).values():
        assert layer.lora_B["default"].weight.any()


def test_modules_are_left_out_by_an_expression_for_their_whole_name(
    save: Save, tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(save(), lora={**LORA, "exclude_modules": r".*\.encoder\..*"})
    found = adapters(build_model(recipe, tokenizer, {}))
    assert found and not any(".encoder." in name for name in found)
    recipe = make_recipe(save(), lora={**LORA, "exclude_modules": "encoder"})
    with pytest.raises(ModelError, match="no module whose whole name matches 'encoder'"):
        build_model(recipe, tokenizer, {})


@pytest.mark.parametrize("family", CLASSES)
def test_new_tokens_are_learned_where_they_are_read_and_where_they_are_written(
    family: str, save: Save, tmp_path: Path
) -> None:
    recipe = make_recipe(save(family), lora=LORA)
    tokenizer = load_tokenizer(recipe.model, NEW)
    ids = tokenizer.convert_tokens_to_ids(NEW)
    values = {"lora_r": 2, "hidden_dropout": 0.2}
    values |= {"encoder_layers": 3, "decoder_layers": 1} if family in WITH_DEPTH else {}
    model = build_model(recipe, tokenizer, values)
    rest = [name for name in trainable(model) if "lora_" not in name]
    assert len(rest) == 1 and "token" in rest[0]
    base = model.get_base_model()
    before = base.get_input_embeddings().weight.detach().clone()
    inputs = batch(tokenizer) | {"labels": tokenizer("#Mina# #Tae#", return_tensors="pt").input_ids}
    before_output = logits(model, inputs)
    train_a_little(model, inputs)
    after_output = logits(model, inputs)
    assert not torch.allclose(before_output[..., ids], after_output[..., ids])

    merged = model.merge_and_unload()
    embeddings = merged.get_input_embeddings().weight
    assert merged.get_output_embeddings().weight is embeddings
    changed = (embeddings != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(ids)
    assert torch.allclose(logits(merged, inputs), after_output, atol=1e-4)
    merged.save_pretrained(tmp_path / "merged")
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(reloaded, inputs), logits(merged, inputs))


@pytest.mark.parametrize("family", CLASSES)
def test_a_saved_adapter_holds_the_rows_of_new_tokens_and_not_all_embeddings(
    family: str, save: Save, tmp_path: Path
) -> None:
    recipe = make_recipe(save(family), lora=LORA)
    tokenizer = load_tokenizer(recipe.model, NEW)
    model, inputs = build_model(recipe, tokenizer, {}), batch(tokenizer)
    labels = tokenizer("#Mina# #Tae#", return_tensors="pt").input_ids
    train_a_little(model, inputs | {"labels": labels})
    model.save_pretrained(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    rows = [weight for name, weight in saved.items() if "lora_" not in name]
    assert rows and {len(weight) for weight in rows} == {len(NEW)}

    torch.manual_seed(3)  # New rows are drawn; the saved ones stand in their place.
    fresh = build_model(recipe, tokenizer, {})
    set_peft_model_state_dict(fresh, saved)
    assert torch.equal(logits(fresh, inputs), logits(model, inputs))


def test_new_tokens_that_are_not_all_trained_are_saved_with_all_embeddings(
    save: Save, tmp_path: Path
) -> None:
    recipe = make_recipe(save(), lora={**LORA, "trainable_token_indices": [0]})
    tokenizer = load_tokenizer(recipe.model, NEW)
    build_model(recipe, tokenizer, {}).save_pretrained(str(tmp_path / "adapter"))
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tokenizer) in {len(weight) for weight in saved.values()}


def test_tokens_that_fall_into_spare_rows_of_the_embeddings_are_learned_too(
    save: Save, tokenizer: PreTrainedTokenizerBase
) -> None:
    """T5 has 28 rows more than its tokenizer has tokens."""
    recipe = make_recipe(save("t5", vocab_size=len(tokenizer) + 28), lora=LORA)
    larger = load_tokenizer(recipe.model, NEW)
    model = build_model(recipe, larger, {})
    config = model.peft_config["default"]
    assert config.trainable_token_indices == sorted(larger.convert_tokens_to_ids(NEW))
    known = build_model(recipe, load_tokenizer(recipe.model, ["#Person1#"]), {})
    assert all("lora_" in name for name in trainable(known))


def test_tokens_that_the_checkpoint_has_no_embeddings_for_are_learned_too(
    save: Save, tokenizer: PreTrainedTokenizerBase
) -> None:
    """As where a tokenizer was saved with new tokens, and the model was not."""
    recipe = make_recipe(save(vocab_size=len(tokenizer) - 1), lora=LORA)
    model = build_model(recipe, tokenizer, {})
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert model.peft_config["default"].trainable_token_indices == [len(tokenizer) - 1]


def with_head_of_its_own(folder: Path) -> torch.Tensor:
    """Gives a T5 an output layer as in mT5 and FLAN-T5."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"])
    save_file(weights, path, metadata={"format": "pt"})
    return weights["lm_head.weight"]


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_output_layer_of_its_own_survives_new_tokens(
    lora: dict[str, Any] | None, save: Save, tmp_path: Path
) -> None:
    folder = save("t5")
    own = with_head_of_its_own(folder)
    recipe = make_recipe(folder, lora=lora)
    tokenizer = load_tokenizer(recipe.model, NEW)
    inputs = batch(tokenizer)
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder)
    model = build_model(recipe, tokenizer, {})
    assert torch.allclose(logits(model, inputs)[..., : len(own)], logits(plain, inputs), atol=1e-5)
    base = model.get_base_model() if lora else model
    assert torch.equal(base.get_output_embeddings().weight[: len(own)], own)
    learned = [name for name in trainable(model) if "lora_" not in name]
    assert any("lm_head" in name for name in learned)
    assert any("shared" in name for name in learned)

    train_a_little(model, inputs | {"labels": tokenizer(NEW[0], return_tensors="pt").input_ids})
    output = logits(model, inputs)
    merged = model.merge_and_unload() if lora else model
    merged.save_pretrained(tmp_path / "merged")
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(reloaded, inputs), output, atol=1e-4)


# One trial after another.

TRIAL = {
    "lora_r": 2,
    "lora_alpha": 64,
    "lora_dropout": 0.2,
    "hidden_dropout": 0.3,
    "attention_dropout": 0.3,
    "encoder_layers": 4,
    "decoder_layers": 1,
    "num_beams": 1,
}


def build_seeded(recipe: Any, tokenizer: PreTrainedTokenizerBase, values: dict[str, Any]) -> Any:
    torch.manual_seed(7)
    return build_model(recipe, tokenizer, values)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA])
def test_nothing_of_a_trial_is_left_in_the_next_one(
    lora: dict[str, Any] | None, save: Save
) -> None:
    recipe = make_recipe(save(), lora=lora)
    tokenizer = load_tokenizer(recipe.model, NEW)
    vocabulary = tokenizer.get_vocab()
    values = {k: v for k, v in TRIAL.items() if lora or not k.startswith("lora")}
    first = build_seeded(recipe, tokenizer, {})
    expected = {name: weight.clone() for name, weight in first.state_dict().items()}
    train_a_little(first, batch(tokenizer))
    other = build_seeded(recipe, tokenizer, values)
    train_a_little(other, batch(tokenizer))
    again = build_seeded(recipe, tokenizer, {})
    assert again.config is not first.config
    assert again.generation_config is not first.generation_config
    assert again.config.to_dict() == build_seeded(recipe, tokenizer, {}).config.to_dict()
    assert again.generation_config.to_dict() == first.generation_config.to_dict()
    assert again.state_dict().keys() == expected.keys()
    assert all(torch.equal(w, expected[name]) for name, w in again.state_dict().items())
    assert tokenizer.get_vocab() == vocabulary
    if lora:
        assert again.peft_config["default"].r == 4


def test_another_seed_gives_other_adapters(save: Save, tokenizer: PreTrainedTokenizerBase) -> None:
    recipe = make_recipe(save(), lora=LORA)
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        model = build_model(recipe, tokenizer, {})
        states.append(next(w for n, w in model.named_parameters() if "lora_A" in n))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
