"""Dropout and depth of a trial's model, in its real modules and outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_families import (
    WITH_DEPTH,
    batch,
    build_model,
    logits,
    make_recipe,
    save_checkpoint,
    train_a_little,
)
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hpo_summarize.errors import ModelError
from hpo_summarize.models.config import load_config
from hpo_summarize.models.depth import spread_layers, with_depth
from hpo_summarize.models.families import require_family
from hpo_summarize.models.tokenizer import load_tokenizer


def dropouts(model: torch.nn.Module) -> set[float]:
    """The probabilities of T5's nn.Dropout modules, and those that BART's modules keep."""
    found = {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}
    own = (getattr(module, "dropout", None) for module in model.modules())
    return found | {value for value in own if isinstance(value, float)}


@pytest.mark.parametrize("family", WITH_DEPTH)
def test_both_dropouts_reach_every_module_of_the_bart_family(
    family: str, folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    values = {"hidden_dropout": 0.37, "attention_dropout": 0.23}
    model = build_model(make_recipe(folders[family]), tokenizer, values)
    attention = {m.dropout for name, m in model.named_modules() if name.endswith("_attn")}
    assert attention == {0.23}
    assert dropouts(model) == {0.37, 0.23}


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_hidden_dropout_reaches_every_dropout_module_of_the_t5_family(
    family: str, folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = build_model(make_recipe(folders[family]), tokenizer, {"hidden_dropout": 0.37})
    assert dropouts(model) == {0.37}


def test_dropout_changes_the_training_output_and_zero_makes_it_repeatable(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    inputs = batch(tokenizer)
    for dropout, same in ((0.0, True), (0.3, False)):
        for family in ("bart", "t5"):
            recipe = make_recipe(folders[family])
            model = build_model(recipe, tokenizer, {"hidden_dropout": dropout}).train()
            losses = [model(**inputs).loss.item() for _ in range(2)]
            assert (losses[0] == losses[1]) is same


def test_facts_hold_what_a_model_has_a_setting_for_and_nothing_else(
    folders: dict[str, Path],
) -> None:
    configs = {name: load_config(make_recipe(path).model) for name, path in folders.items()}
    facts = {name: require_family(config).facts(config) for name, config in configs.items()}
    for family in WITH_DEPTH:
        assert facts[family] == {
            "model_type": family,
            "task": "seq2seq",
            "hidden_dropout": 0.1,
            "attention_dropout": 0.0,
            "encoder_layers": 2,
            "decoder_layers": 2,
        }
    assert facts["t5"] == {"model_type": "t5", "task": "seq2seq", "hidden_dropout": 0.1}
    assert facts["mt5"].keys() == facts["t5"].keys()


def test_a_new_name_of_the_model_needs_a_row_of_fields_only(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"layerdrop": ("encoder_layerdrop",)}
    monkeypatch.setattr("hpo_summarize.models.families._FIELDS", fields)
    config = BartConfig.from_pretrained(folders["bart"])
    require_family(config).set_values(config, {"layerdrop": 0.25})
    assert config.encoder_layerdrop == 0.25


@pytest.mark.parametrize("name, value", [("attention_dropout", 0.2), ("encoder_layers", 3)])
def test_a_value_that_the_model_has_no_setting_for_is_refused(
    name: str, value: float, folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ModelError, match=f"'{name}' .value {value}. cannot act: .* 't5'"):
        build_model(make_recipe(folders["t5"]), tokenizer, {name: value})


# Depth.


def test_layers_are_spread_evenly_with_the_first_and_the_last_kept() -> None:
    assert spread_layers(6, 3) == [0, 2, 5]
    assert spread_layers(12, 6) == [0, 2, 4, 7, 9, 11]
    assert spread_layers(6, 1) == [0]
    assert spread_layers(6, 6) == [0, 1, 2, 3, 4, 5]
    assert spread_layers(2, 5) == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("family", WITH_DEPTH)
@pytest.mark.parametrize("encoder, decoder", [(1, 3), (5, 1), (2, 4)])
def test_each_layer_of_another_depth_is_a_copy_of_the_chosen_one(
    family: str,
    encoder: int,
    decoder: int,
    folders: dict[str, Path],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    recipe = make_recipe(folders[family])
    old = build_model(recipe, tokenizer, {})
    depth = {"encoder_layers": encoder, "decoder_layers": decoder}
    new = build_model(recipe, tokenizer, depth)
    for stack, wanted in (("encoder", encoder), ("decoder", decoder)):
        had, has = (getattr(model.model, stack).layers for model in (old, new))
        assert len(has) == wanted == getattr(new.config, f"{stack}_layers")
        for layer, number in zip(has, spread_layers(2, wanted), strict=True):
            for name, weight in layer.state_dict().items():
                assert torch.equal(weight, had[number].state_dict()[name])
    elsewhere = [name for name in old.state_dict() if ".layers." not in name]
    for name in elsewhere:
        assert torch.equal(new.state_dict()[name], old.state_dict()[name])
    assert {id(m.config) for m in new.modules() if hasattr(m, "config")} == {id(new.config)}
    assert new.lm_head.weight is new.model.shared.weight is new.model.encoder.embed_tokens.weight


@pytest.mark.parametrize("family", WITH_DEPTH)
def test_a_model_of_another_depth_generates_the_same_with_and_without_cache(
    family: str, folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    values = {"encoder_layers": 1, "decoder_layers": 4}
    model = build_model(make_recipe(folders[family]), tokenizer, values).eval()
    numbers = [layer.self_attn.layer_idx for layer in model.model.decoder.layers]
    assert numbers == [layer.encoder_attn.layer_idx for layer in model.model.decoder.layers]
    assert numbers == [0, 1, 2, 3]
    inputs = batch(tokenizer)
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert torch.equal(logits(model, inputs), logits(reloaded, inputs))
    del inputs["labels"]
    with_cache = model.generate(**inputs, use_cache=True)
    assert torch.equal(with_cache, model.generate(**inputs, use_cache=False))
    assert torch.equal(with_cache, reloaded.generate(**inputs))


def test_the_same_depth_gives_the_same_output_bit_for_bit(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = build_model(make_recipe(folders["bart"]), tokenizer, {}).eval()
    model.generation_config.num_beams = 3
    inputs = batch(tokenizer)
    random_state = torch.get_rng_state()
    for depth in ({}, {"encoder_layers": 2, "decoder_layers": 2}):
        same = with_depth(model, **depth)
        assert not same.training
        assert torch.equal(logits(same, inputs), logits(model, inputs))
        assert same.generation_config.num_beams == 3
    assert torch.equal(torch.get_rng_state(), random_state)


def test_copied_layers_learn_apart_and_the_old_model_stays_as_it_is(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = build_model(make_recipe(folders["bart"]), tokenizer, {})
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    deeper = with_depth(model, encoder_layers=4)
    train_a_little(deeper, batch(tokenizer))
    first, second = (deeper.model.encoder.layers[n].fc1.weight for n in (0, 1))
    assert not torch.equal(first, second)
    assert len(model.model.encoder.layers) == model.config.encoder_layers == 2
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


# KoBART.


def test_a_checkpoint_of_kobarts_layout_trains_and_generates(tmp_path: Path) -> None:
    """Begins and ends with one token, 1; the tokenizer has <s> = 0 and adds no token at all."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    first = ["<s>", "</s>", "<mask>", "<pad>", "<unused0>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*first, *alphabet])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    roles = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    own = PreTrainedTokenizerFast(tokenizer_object=core, mask_token="<mask>", **roles)
    ids = {"bos_token_id": 1, "decoder_start_token_id": 1, "forced_eos_token_id": 1}
    save_checkpoint(tmp_path, "bart", own, init_std=0.1, **ids)

    recipe = make_recipe(tmp_path)
    tokenizer = load_tokenizer(recipe.model, ["#Person1#"])
    model = build_model(recipe, tokenizer, {})
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 3)
    config = model.generation_config
    assert (config.decoder_start_token_id, config.eos_token_id, config.pad_token_id) == (1, 1, 3)
    inputs = tokenizer("안녕하세요, #Person1#", return_tensors="pt")
    assert tokenizer.decode(inputs["input_ids"][0]) == "안녕하세요, #Person1#"
    labels = torch.tensor([[*tokenizer("#Person1# 안녕")["input_ids"], tokenizer.eos_token_id]])
    kept = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    train_a_little(model, {**kept, "labels": labels}, steps=60, rate=0.02)
    output = model.eval().generate(**kept)[0]
    assert output[0] == output[-1] == 1
    assert tokenizer.decode(output, skip_special_tokens=True) == "#Person1# 안녕"


# The family.


def test_a_generation_is_given_nothing_that_was_made_from_the_labels() -> None:
    family, ids = require_family(BartConfig()), torch.tensor([[5, 6, 2]])
    prefix = {"input_ids": ids, "decoder_input_ids": ids[:, :1]}
    collated = {"input_ids": ids, "labels": ids, "decoder_input_ids": ids}
    assert family.generation_inputs(prefix).keys() == prefix.keys()
    assert family.generation_inputs({**prefix, "labels": ids}).keys() == prefix.keys()
    assert family.generation_inputs(collated).keys() == {"input_ids"}
