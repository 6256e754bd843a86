"""A fresh model for a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hpo_summarize.config.fields import foreign_settings
from hpo_summarize.config.parameters import DEPTHS, LEAVES_BASE
from hpo_summarize.config.schema import Recipe
from hpo_summarize.generation import put_values
from hpo_summarize.models.config import check_lengths, load_config, not_loaded
from hpo_summarize.models.depth import with_depth
from hpo_summarize.models.families import require_family
from hpo_summarize.models.lora import lora_settings, with_lora
from hpo_summarize.models.shared_base import (
    PretrainedBase,
    grow,
    load_pretrained,
    n_embeddings,
    unshare,
)
from hpo_summarize.models.tokenizer import n_rows, new_tokens
from hpo_summarize.search_space import TrialSpec

if TYPE_CHECKING:
    from peft import PeftModel


def build_model(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    spec: TrialSpec,
    base: PretrainedBase | None = None,
) -> PreTrainedModel | PeftModel:
    """A fresh model: pretrained or random weights, depth, dropout, decoding and LoRA.

    Args:
        recipe: The recipe, for the checkpoint or the configuration, LoRA and the fixed decoding.
        tokenizer: Decides the size of the vocabulary and the ids of its special tokens.
        spec: Values of a trial. Those of the generation are not set; they only decide which fixed
            ones can act.
        base: The weights of the recipe's checkpoint, for adapters; None: they are read from disk.
            The model is the same to the bit, but what it does not train lies in the memory of
            `base`: see `unshare` before merging.

    Raises:
        ModelError: The checkpoint cannot be loaded, it and the tokenizer do not belong together, a
            value cannot act in it, or LoRA cannot be put on it.
    """
    config = load_config(recipe.model) if base is None else base.config()
    check_lengths(config, recipe)
    require_family(config).set_values(config, spec.model)
    depth = {name: spec.model[name] for name in DEPTHS if name in spec.model}
    if base is None:
        model = _load(recipe, config, tokenizer)
        rows = n_embeddings(model)
        new = [] if recipe.lora is None else new_tokens(recipe.model, tokenizer, rows)
        if n_rows(tokenizer) > rows:
            grow(model, n_rows(tokenizer))
        if any(getattr(config, name) != layers for name, layers in depth.items()):
            model = with_depth(model, **depth)
    else:
        model, new = base.build(config, depth), base.new_tokens
    _set_fixed_decoding(model, recipe, tokenizer, spec)
    if recipe.lora is None:
        return model
    settings = lora_settings(recipe.lora, spec.lora)
    if base and settings.get("init_lora_weights", True) not in LEAVES_BASE:
        unshare(model)
    adapted = with_lora(model, settings, new)
    if base:
        unshare(adapted, only_trained=True)
    return adapted


def _load(
    recipe: Recipe, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    section, family = recipe.model, require_family(config)
    if section.name is not None:
        return load_pretrained(section, config, tokenizer)
    config.vocab_size = n_rows(tokenizer)
    family.set_token_ids(config, tokenizer, section.from_config or {})
    try:
        return family.auto_class.from_config(config)
    except Exception as error:
        raise not_loaded("model", section.from_config, error) from None


def _set_fixed_decoding(
    model: PreTrainedModel, recipe: Recipe, tokenizer: PreTrainedTokenizerBase, spec: TrialSpec
) -> None:
    """The checkpoint's own decoding, with what the recipe fixes in its place."""
    config = model.generation_config
    require_family(model.config).set_start(config, tokenizer)
    fixed = recipe.generation.model_dump()
    if fixed["max_new_tokens"] is None:
        del fixed["max_new_tokens"]  # The limits stay the checkpoint's.
    else:
        for name in foreign_settings(config, {**recipe.generation.settings(), **recipe.space}):
            setattr(config, name, None)
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    put_values(config, fixed, spec.generation)
