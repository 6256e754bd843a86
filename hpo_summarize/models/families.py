"""What differs between model families: decoder inputs, loss, language tokens."""

from __future__ import annotations

import sys
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedTokenizerBase

from hpo_summarize.errors import ModelError, did_you_mean


def decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """The labels of a batch, shifted as the model's own forward shifts them.

    M2M100, NLLB-MoE, Blenderbot and SeamlessM4T of transformers 5.23 lack the public method; their
    forward calls the function `shift_tokens_right` of its module.

    Raises:
        ModelError: The model has neither.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    shift = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)
    if shift is None:
        raise ModelError(
            f"model: a '{model.config.model_type}' model has no rule by which labels become inputs "
            "of its decoder, so it cannot be trained here; take a BART or T5 model, for example"
        )
    return shift(labels, model.config.pad_token_id, model.config.decoder_start_token_id)


def has_own_loss(model: Any) -> bool:
    """Whether a model is trained with more than the cross entropy of its next tokens.

    ProphetNet predicts several tokens ahead; NLLB-MoE balances its experts where its config has
    `output_router_logits`.
    """
    balances = getattr(model.config, "output_router_logits", False)
    return bool(balances) or hasattr(model, "_compute_loss")


def set_language(tokenizer: PreTrainedTokenizerBase, language: str | None) -> None:
    """Lets a tokenizer mark dialogues and summaries as texts of one language.

    Args:
        tokenizer: The model's.
        language: A code that the tokenizer knows, such as `ko_KR`. None: its source language.

    Raises:
        ModelError: It does not know the language, or knows none at all.
    """
    codes = language_codes(tokenizer)
    if not codes and language is not None:
        raise ModelError(
            f"model.language: the tokenizer of this model marks no languages, got {language!r}; "
            "leave it out"
        )
    if language is not None and language not in codes:
        raise ModelError(
            f"model.language must be one of the languages of the tokenizer ({', '.join(codes)}), "
            f"got {language!r}{did_you_mean(language, codes)}"
        )
    if codes:
        marked: Any = tokenizer
        marked.src_lang = marked.tgt_lang = language or marked.src_lang


def language_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The language that a tokenizer marks texts with; None where it marks none."""
    return getattr(tokenizer, "src_lang", None) if language_codes(tokenizer) else None


def begin_as_trained(config: GenerationConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Lets an output begin with the language, where the labels of the tokenizer do.

    mBART shifts its labels round: what stands last in them, the language, comes first to its
    decoder. In the labels of mBART-50 the language stands first, after the start that is shifted
    in. Checkpoints are published with another language there, or with none.
    """
    language = language_of(tokenizer)
    if language is None:
        return
    code = tokenizer.convert_tokens_to_ids(language)
    around = tokenizer(text_target="")["input_ids"]
    if around[-1] == code:
        config.decoder_start_token_id = code
    else:
        config.forced_bos_token_id = code


def language_codes(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The languages that a tokenizer knows; none for most."""
    return list(getattr(tokenizer, "lang_code_to_id", {}))
