"""A fresh model for a trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hpo_summarize.config.parameters import DEPTHS, LEAVES_BASE, foreign_settings
from hpo_summarize.config.schema import Recipe
from hpo_summarize.generation import put_values
from hpo_summarize.models.config import check_lengths, load_config, not_loaded
from hpo_summarize.models.depth import with_depth
from hpo_summarize.models.families import require_family
from hpo_summarize.models.lora import lora_settings, with_lora
from hpo_summarize.models.shared_base import PretrainedBase
from hpo_summarize.models.tokenizer import n_rows
from hpo_summarize.models.weights import unshare
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
        base: The recipe's checkpoint, which many models share; None: it is read from disk. What the
            model does not train lies in the memory of `base`.

    Raises:
        ModelError: The checkpoint cannot be loaded, it and the tokenizer do not belong together, a
            value cannot act in it, or LoRA cannot be put on it.
    """
    depth = {name: spec.model[name] for name in DEPTHS if name in spec.model}
    source: PretrainedBase | None = None
    if recipe.model.name is None:
        config = _checked(load_config(recipe.model), recipe, spec)
        model = _with_random_weights(config, recipe, tokenizer)
        model = with_depth(model, **depth) if depth else model
    else:
        source = base or PretrainedBase(recipe, tokenizer)
        config = _checked(source.config(), recipe, spec)
        model = source.build(config, depth)
        if base is None and depth:
            unshare(model)  # Repeated layers have weights of their own.
    _set_fixed_decoding(model, recipe, tokenizer, spec)
    if recipe.lora is None:
        if base:
            unshare(model)
        return model
    settings = lora_settings(recipe.lora, spec.lora)
    if base and settings.get("init_lora_weights", True) not in LEAVES_BASE:
        unshare(model)
    adapted = with_lora(model, settings, source.new_tokens if source else [])
    if base:
        unshare(adapted, only_trained=True)
    return adapted


def _checked(config: PretrainedConfig, recipe: Recipe, spec: TrialSpec) -> PretrainedConfig:
    """The configuration with the dropout of a trial, for which it has the positions."""
    check_lengths(config, recipe)
    require_family(config).set_values(config, spec.model)
    return config


def _with_random_weights(
    config: PretrainedConfig, recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    family, given = require_family(config), recipe.model.from_config or {}
    config.vocab_size = n_rows(tokenizer)
    family.set_token_ids(config, tokenizer, given)
    try:
        return family.auto_class.from_config(config)
    except Exception as error:
        raise not_loaded("model", given, error) from None


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
