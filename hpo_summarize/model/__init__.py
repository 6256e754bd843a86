"""Tokenizer and model of a recipe: a fresh model for every trial, built from its values."""

from hpo_summarize.model.build import build_model
from hpo_summarize.model.config import (
    check_is_seq2seq,
    check_lengths,
    load_config,
    load_decoding,
    model_facts,
    positions,
)
from hpo_summarize.model.depth import spread_layers, with_depth
from hpo_summarize.model.labels import decoder_inputs, has_own_loss
from hpo_summarize.model.languages import language_of
from hpo_summarize.model.lora import load_adapter, merged
from hpo_summarize.model.outputs import (
    OUTPUTS,
    difference,
    difference_from,
    first_rows,
    label_log_probs,
    write_outputs,
)
from hpo_summarize.model.pretrained import PretrainedBase, load_plain, reloaded, unshare
from hpo_summarize.model.tokenizer import (
    add_tokens,
    keep_in_texts,
    load_tokenizer,
    pieces_note,
    spare_rows_note,
    train_tokenizer,
)

__all__ = [
    "OUTPUTS",
    "PretrainedBase",
    "add_tokens",
    "build_model",
    "check_is_seq2seq",
    "check_lengths",
    "decoder_inputs",
    "difference",
    "difference_from",
    "first_rows",
    "has_own_loss",
    "keep_in_texts",
    "label_log_probs",
    "language_of",
    "load_adapter",
    "load_config",
    "load_decoding",
    "load_plain",
    "load_tokenizer",
    "merged",
    "model_facts",
    "pieces_note",
    "positions",
    "reloaded",
    "spare_rows_note",
    "spread_layers",
    "train_tokenizer",
    "unshare",
    "with_depth",
    "write_outputs",
]
