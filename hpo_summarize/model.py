"""Tokenizer and model of a recipe: a fresh model for every trial, built from its values."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hpo_summarize import names
from hpo_summarize.errors import ModelError
from hpo_summarize.recipe import DataSection, ModelSection, Recipe

# The model configuration's own field for our word, in the order of looking.
_DROPOUT_FIELDS = {
    "hidden_dropout": ("dropout", "dropout_rate", "hidden_dropout_prob", "resid_pdrop"),
    "attention_dropout": ("attention_dropout", "attention_probs_dropout_prob", "attn_pdrop"),
}


def load_config(section: ModelSection) -> PretrainedConfig:
    """The configuration of a recipe's model.

    Raises:
        ModelError: There is no such checkpoint or model type, or it is no encoder-decoder.
    """
    try:
        if section.from_config is not None:
            fields = dict(section.from_config)
            return AutoConfig.for_model(fields.pop("model_type"), **fields)
        config = AutoConfig.from_pretrained(section.name, **_source(section))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and its own.
        raise ModelError(_not_loaded("model", section.name or section.from_config, error)) from None
    return config


def check_is_seq2seq(config: PretrainedConfig) -> None:
    """Refuses a decoder-only model.

    Raises:
        ModelError: The model has no encoder.
    """
    if not config.is_encoder_decoder:
        raise ModelError(
            f"model: a '{config.model_type}' is a decoder-only model, and this version searches "
            "encoder-decoder models (BART, mBART, T5, mT5, Pegasus); choose one of those"
        )


def model_facts(config: PretrainedConfig) -> dict[str, Any]:
    """What a search space must know of a model.

    Returns:
        `model_type`, `task`, and the present value of each of `names.MODEL_NAMES` that the model
        has a setting for.
    """
    facts = {"model_type": config.model_type, "task": "seq2seq"}
    for name in names.DROPOUTS:
        if field := _dropout_field(config, name):
            facts[name] = getattr(config, field)
    own = config.to_dict()
    return facts | {name: own[name] for name in names.DEPTHS if name in own}


def _dropout_field(config: PretrainedConfig, name: str) -> str | None:
    own = config.to_dict()
    return next((field for field in _DROPOUT_FIELDS[name] if field in own), None)


def load_tokenizer(
    section: ModelSection, special_tokens: Iterable[str] = ()
) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model, with the special tokens that it lacks added.

    They are added as ordinary whole tokens: as "special" ones they would be left out of every
    decoded summary, and so would the speakers that a summary speaks of.

    Raises:
        ModelError: There is no tokenizer at that place.
    """
    source = section.tokenizer or section.name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **_source(section))
    except Exception as error:
        raise ModelError(_not_loaded("tokenizer", source, error)) from None
    add_tokens(tokenizer, special_tokens)
    return tokenizer


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Iterable[str] = ()
) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with BART's special tokens, learned from `texts`.

    The same texts in the same order give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(roles.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    named = {f"{role}_token": token for role, token in roles.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    add_tokens(tokenizer, special_tokens)
    return tokenizer


def check_lengths(config: PretrainedConfig, data: DataSection) -> None:
    """Refuses lengths that the model has no positions for.

    Raises:
        ModelError: `max_dialogue_tokens` or `max_summary_tokens` is above the model's limit.
    """
    limit = getattr(config, "max_position_embeddings", None)
    for key in ("max_dialogue_tokens", "max_summary_tokens"):
        if limit is not None and getattr(data, key) > limit:
            raise ModelError(
                f"data.{key} is {getattr(data, key)}, and the model has {limit} positions; "
                f"set data.{key} to {limit} or less"
            )


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> None:
    """Adds the tokens that a tokenizer does not know as whole tokens yet."""
    tokenizer.add_tokens([token for token in tokens if token not in tokenizer.get_vocab()])


def build_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any]
) -> PreTrainedModel:
    """A fresh model: pretrained or random weights, depth, dropout, decoding and LoRA.

    Args:
        recipe: Gives the checkpoint or the configuration, LoRA and the fixed decoding.
        tokenizer: Decides the size of the vocabulary and the ids of its special tokens.
        values: Values of a trial; names of other owners than `model` and `lora` are passed over.

    Raises:
        ModelError: The checkpoint cannot be loaded, or LoRA cannot be put on it.
    """
    parts = names.split_by_owner(values)
    config = _with_dropout(load_config(recipe.model), parts["model"])
    depth = {name: parts["model"][name] for name in names.DEPTHS if name in parts["model"]}
    model = _load(recipe.model, config, tokenizer)
    old_size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > old_size:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=True)
    if any(getattr(config, name) != layers for name, layers in depth.items()):
        model = with_depth(model, **depth)
    _set_fixed_decoding(model, recipe, tokenizer)
    if recipe.lora is not None:
        model = _with_lora(model, recipe, parts["lora"], range(old_size, len(tokenizer)))
    return model


def _load(
    section: ModelSection, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    if section.from_config is not None:
        config.vocab_size = len(tokenizer)
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            if getattr(tokenizer, name) is not None:
                setattr(config, name, getattr(tokenizer, name))
        if "decoder_start_token_id" not in section.from_config:
            config.decoder_start_token_id = _start_token(config)
        return AutoModelForSeq2SeqLM.from_config(config)
    try:
        return AutoModelForSeq2SeqLM.from_pretrained(
            section.name, config=config, dtype=torch.float32, **_source(section)
        )
    except Exception as error:
        raise ModelError(_not_loaded("model", section.name, error)) from None


def _start_token(config: PretrainedConfig) -> int:
    """T5 begins its output with the padding token, BART with the end of the sentence."""
    return config.pad_token_id if "t5" in config.model_type else config.eos_token_id


def _with_dropout(config: PretrainedConfig, values: Mapping[str, Any]) -> PretrainedConfig:
    for name in names.DROPOUTS:
        if name in values:
            setattr(config, str(_dropout_field(config, name)), values[name])
    return config


def with_depth(
    model: PreTrainedModel, encoder_layers: int | None = None, decoder_layers: int | None = None
) -> PreTrainedModel:
    """The same model with another number of layers, the weights copied.

    Fewer layers are an evenly spaced choice that keeps the first and the last; more are the old
    ones repeated in order (layer `i` of `m` is a copy of old layer `floor(i * n / m)`).

    Args:
        model: A model with `encoder_layers` and `decoder_layers` in its configuration.
        encoder_layers: Wanted number; None leaves it.
        decoder_layers: Likewise.
    """
    config = copy.deepcopy(model.config)
    chosen: dict[str, list[int]] = {}
    for stack, wanted in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        have = getattr(config, f"{stack}_layers")
        chosen[stack] = spread_layers(have, wanted or have)
        setattr(config, f"{stack}_layers", wanted or have)
    old = model.state_dict()
    new = type(model)(config)
    renamed = {key: old[_old_key(key, chosen)] for key in new.state_dict()}
    new.load_state_dict(renamed)
    new.generation_config = model.generation_config
    return new


def spread_layers(have: int, wanted: int) -> list[int]:
    """Which of `have` layers stand in a model of `wanted` layers.

    Example:
        >>> spread_layers(6, 3), spread_layers(2, 4)
        ([0, 2, 5], [0, 0, 1, 1])
    """
    if wanted >= have:
        return [index * have // wanted for index in range(wanted)]
    if wanted == 1:
        return [0]
    return [round(index * (have - 1) / (wanted - 1)) for index in range(wanted)]


def _old_key(key: str, chosen: Mapping[str, list[int]]) -> str:
    parts = key.split(".")
    for position in range(len(parts) - 2):
        stack, layers, number = parts[position : position + 3]
        if stack in chosen and layers == "layers":
            parts[position + 2] = str(chosen[stack][int(number)])
    return ".".join(parts)


def _set_fixed_decoding(
    model: PreTrainedModel, recipe: Recipe, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The checkpoint's own decoding, with what the recipe fixes in its place."""
    config = model.generation_config
    config.update(**recipe.generation.model_dump())
    config.max_length = None  # The checkpoint's limit, often 20, beside our max_new_tokens.
    config.pad_token_id = tokenizer.pad_token_id if config.pad_token_id is None else config.pad_token_id


def _with_lora(
    model: PreTrainedModel, recipe: Recipe, values: Mapping[str, Any], new_tokens: range
) -> PreTrainedModel:
    from peft import LoraConfig, TaskType, get_peft_model

    words = {"alpha": "lora_alpha", "dropout": "lora_dropout"}
    fixed = {words.get(key, key): value for key, value in recipe.lora.model_dump().items()}
    sampled = {names.LORA_WORDS.get(name, name): value for name, value in values.items()}
    settings = {"task_type": TaskType.SEQ_2_SEQ_LM, **fixed, **sampled}
    if len(new_tokens) and "trainable_token_indices" not in settings:
        # Their embeddings are new, and LoRA freezes the embeddings: they would stay as they are.
        settings["trainable_token_indices"] = list(new_tokens)
    try:
        return get_peft_model(model, LoraConfig(**settings))
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"lora: the adapters cannot be put on a '{model.config.model_type}' model "
            f"({str(error).splitlines()[0]}); check lora.target_modules"
        ) from None


def _source(section: ModelSection) -> dict[str, Any]:
    return {"revision": section.revision, "trust_remote_code": section.trust_remote_code} if (
        section.revision
    ) else {"trust_remote_code": section.trust_remote_code}


def _not_loaded(what: str, source: Any, error: Exception) -> str:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    where = f"'{source}'"
    if isinstance(source, str) and (Path(source).exists() or source.startswith((".", "/", "~"))):
        where = f"the folder '{source}'"
    return (
        f"model: the {what} cannot be loaded from {where} ({first_line}). "
        "Give a folder that save_pretrained wrote, or the id of a repository on the Hub"
    )
