"""A fresh model for a trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transformers import (
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hpo_summarize.config.parameters import DEPTHS, foreign_settings, split_by_owner
from hpo_summarize.config.schema import ModelSection, Recipe
from hpo_summarize.generation import put_values
from hpo_summarize.models.config import (
    check_can_act,
    check_output_length,
    load_config,
    not_loaded,
    set_dropout,
)
from hpo_summarize.models.depth import with_depth
from hpo_summarize.models.families import begin_as_trained
from hpo_summarize.models.lora import leaves_base, lora_settings, with_lora
from hpo_summarize.models.shared_base import (
    PretrainedBase,
    grow,
    load_pretrained,
    n_embeddings,
    unshare,
)
from hpo_summarize.models.tokenizer import n_rows, new_tokens

if TYPE_CHECKING:
    from peft import PeftModel


def build_model(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    values: Mapping[str, Any],
    base: PretrainedBase | None = None,
) -> PreTrainedModel | PeftModel:
    """A fresh model: pretrained or random weights, depth, dropout, decoding and LoRA.

    Args:
        recipe: The recipe, for the checkpoint or the configuration, LoRA and the fixed decoding.
        tokenizer: Decides the size of the vocabulary and the ids of its special tokens.
        values: Values of a trial; names of other owners than `model` and `lora` are passed over,
            but for the decoding values that decide which others can act.
        base: The weights of the recipe's checkpoint, for adapters; None: they are read from disk.
            The model is the same to the bit, but what it does not train lies in the memory of
            `base`: see `unshare` before merging.

    Raises:
        ModelError: The checkpoint cannot be loaded, it and the tokenizer do not belong together, a
            value cannot act in it, or LoRA cannot be put on it.
    """
    parts = split_by_owner(values)
    config = load_config(recipe.model) if base is None else base.config()
    check_can_act(config, parts["model"])
    check_output_length(config, recipe.generation, recipe.space)
    set_dropout(config, parts["model"])
    depth = {name: parts["model"][name] for name in DEPTHS if name in parts["model"]}
    if base is None:
        model = _load(recipe.model, config, tokenizer)
    else:
        model, depth = base.build(config, depth), {}
    old_rows = n_embeddings(model)
    if n_rows(tokenizer) > old_rows:
        grow(model, n_rows(tokenizer))
    if any(getattr(config, name) != layers for name, layers in depth.items()):
        model = with_depth(model, **depth)
    _set_fixed_decoding(model, recipe, tokenizer, parts["generation"])
    if recipe.lora is None:
        return model
    settings = lora_settings(recipe.lora, parts["lora"])
    new = base.new_tokens if base else new_tokens(recipe.model, tokenizer, old_rows)
    if base and not leaves_base(settings):
        unshare(model)
    adapted = with_lora(model, settings, new)
    if base:
        unshare(adapted, only_trained=True)
    return adapted


def _load(
    section: ModelSection, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    if section.name is None:
        _take_ids(config, tokenizer, section.from_config or {})
        try:
            return AutoModelForSeq2SeqLM.from_config(config)
        except Exception as error:
            raise not_loaded("model", section.from_config, error) from None
    return load_pretrained(section, config, tokenizer)


def _take_ids(
    config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]
) -> None:
    """The vocabulary of a model from a configuration is that of its tokenizer."""
    config.vocab_size = n_rows(tokenizer)
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if getattr(tokenizer, name) is not None:
            setattr(config, name, getattr(tokenizer, name))
    if "decoder_start_token_id" not in given:
        # T5 begins its output with the padding token, BART with the end of the sentence.
        is_t5 = "t5" in config.model_type
        config.decoder_start_token_id = config.pad_token_id if is_t5 else config.eos_token_id
    if "forced_eos_token_id" not in given and getattr(config, "forced_eos_token_id", None):
        config.forced_eos_token_id = config.eos_token_id


def _set_fixed_decoding(
    model: PreTrainedModel,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    values: Mapping[str, Any],
) -> None:
    """The checkpoint's own decoding, with what the recipe fixes in its place."""
    config = model.generation_config
    begin_as_trained(config, tokenizer)
    fixed = recipe.generation.model_dump()
    if fixed["max_new_tokens"] is None:
        del fixed["max_new_tokens"]  # The limits stay the checkpoint's.
    else:
        for name in foreign_settings(config, {**recipe.generation.settings(), **recipe.space}):
            setattr(config, name, None)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    put_values(config, fixed, values)
