"""Dialogues and summaries: found, read, checked, split and tokenised."""

from hpo_summarize.data.dialogues import Dialogues, joined
from hpo_summarize.data.splits import (
    count_leaks,
    count_repeated,
    leak_notes,
    load_splits,
    read_dialogues,
    read_every_row,
    split,
)
from hpo_summarize.data.tokens import from_dataset, label_texts, output_length, tokenize

__all__ = [
    "Dialogues",
    "count_leaks",
    "count_repeated",
    "from_dataset",
    "joined",
    "label_texts",
    "leak_notes",
    "load_splits",
    "output_length",
    "read_dialogues",
    "read_every_row",
    "split",
    "tokenize",
]
