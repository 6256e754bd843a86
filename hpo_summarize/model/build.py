"""A fresh model for a trial."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hpo_summarize import names
from hpo_summarize.decoding import clear_idle_flags
from hpo_summarize.errors import ModelError
from hpo_summarize.model.config import check_can_act, check_output_length, load_config, set_dropout
from hpo_summarize.model.depth import with_depth
from hpo_summarize.model.pretrained import (
    PretrainedBase,
    has_separate_head,
    load_pretrained,
    n_embeddings,
    name_of,
    unshare,
)
from hpo_summarize.model.source import not_loaded
from hpo_summarize.model.tokenizer import n_rows, new_tokens
from hpo_summarize.recipe import ModelSection, Recipe

if TYPE_CHECKING:
    from peft import PeftModel


# Ways to begin the adapters that leave the weights below them alone; the others, PiSSA or OLoRA,
# take out of those what they put into the adapters.
_LEAVES_BASE = (True, False, "gaussian", "orthogonal", "mica")


def build_model(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    values: Mapping[str, Any],
    base: PretrainedBase | None = None,
) -> PreTrainedModel | PeftModel:
    """A fresh model: pretrained or random weights, depth, dropout, decoding and LoRA.

    Args:
        recipe: Gives the checkpoint or the configuration, LoRA and the fixed decoding.
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
    parts = names.split_by_owner(values)
    config = load_config(recipe.model) if base is None else base.config()
    check_can_act(config, parts["model"])
    check_output_length(config, recipe.generation, recipe.space)
    set_dropout(config, parts["model"])
    depth = {name: parts["model"][name] for name in names.DEPTHS if name in parts["model"]}
    if base is None:
        model = _load(recipe.model, config, tokenizer)
    else:
        model, depth = base.build(config, depth), {}
    old_rows = n_embeddings(model)
    if n_rows(tokenizer) > old_rows:
        model.resize_token_embeddings(n_rows(tokenizer), mean_resizing=True)
    if any(getattr(config, name) != layers for name, layers in depth.items()):
        model = with_depth(model, **depth)
    _set_fixed_decoding(model, recipe, tokenizer, parts["generation"])
    if recipe.lora is None:
        return model
    settings = _lora_settings(recipe, parts["lora"])
    new = base.new_tokens if base else new_tokens(recipe.model, tokenizer, old_rows)
    if base and settings.get("init_lora_weights", True) not in _LEAVES_BASE:
        unshare(model)
    adapted = _with_lora(model, settings, new)
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
    fixed = recipe.generation.model_dump()
    if fixed["max_new_tokens"] is None:
        del fixed["max_new_tokens"]  # The limit stays the checkpoint's.
    else:
        config.max_length = None  # The checkpoint's limit, often 20, beside our max_new_tokens.
    config.update(**fixed)
    if config.min_new_tokens is not None:
        config.min_length = None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    clear_idle_flags(config, values)


def _lora_settings(recipe: Recipe, values: Mapping[str, Any]) -> dict[str, Any]:
    from peft import TaskType

    words = {"alpha": "lora_alpha", "dropout": "lora_dropout"}
    section = recipe.lora.model_dump() if recipe.lora else {}
    fixed = {words.get(key, key): value for key, value in section.items()}
    sampled = {names.LORA_WORDS.get(name, name): value for name, value in values.items()}
    return {"task_type": TaskType.SEQ_2_SEQ_LM, **fixed, **sampled}


def _with_lora(model: PreTrainedModel, settings: dict[str, Any], new: Sequence[int]) -> PeftModel:
    from peft import LoraConfig, get_peft_model

    if new and "trainable_token_indices" not in settings:
        # Their embeddings are new, and LoRA freezes the embeddings: they would stay as they are.
        settings["trainable_token_indices"] = list(new)
        if has_separate_head(model):
            layers = (model.get_input_embeddings(), model.get_output_embeddings())
            settings["trainable_token_indices"] = {name_of(model, m): list(new) for m in layers}
    _check_patterns(model, settings)
    try:
        return get_peft_model(model, LoraConfig(**settings))
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # peft raises ValueError, TypeError, IndexError, re.error and more.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"lora: the adapters cannot be put on a '{model.config.model_type}' model "
            f"({reason}); check lora.target_modules and the other keys of lora"
        ) from None


def _check_patterns(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Refuses names of modules that the model has not; peft passes over them without a word."""
    modules = [name for name, _ in model.named_modules()]
    for key in ("modules_to_save", "exclude_modules", "rank_pattern", "alpha_pattern"):
        patterns = settings.get(key)
        for pattern in patterns if isinstance(patterns, list | Mapping) else ():
            text = re.escape(pattern) if isinstance(patterns, list) else pattern
            if not any(re.fullmatch(rf"(.*\.)?({text})", name) for name in modules):
                raise ModelError(
                    f"lora.{key}: a '{model.config.model_type}' model has no module that ends in "
                    f"{pattern!r}; take one of its own, such as {modules[-1]!r}, or drop it"
                )
