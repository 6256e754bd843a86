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
from hpo_summarize.model.languages import language_of
from hpo_summarize.model.pretrained import PretrainedBase, unshare
from hpo_summarize.model.tokenizer import (
    add_tokens,
    keep_in_texts,
    load_tokenizer,
    pieces_note,
    spare_rows_note,
    train_tokenizer,
)

__all__ = [
    "PretrainedBase",
    "add_tokens",
    "build_model",
    "check_is_seq2seq",
    "check_lengths",
    "keep_in_texts",
    "language_of",
    "load_config",
    "load_decoding",
    "load_tokenizer",
    "model_facts",
    "pieces_note",
    "positions",
    "spare_rows_note",
    "spread_layers",
    "train_tokenizer",
    "unshare",
    "with_depth",
]
