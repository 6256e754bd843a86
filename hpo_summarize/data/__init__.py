"""Dialogues and summaries: found, read, checked, split and tokenised."""

from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.data.splits import (
    count_leaks,
    count_repeated,
    load_splits,
    read_dialogues,
    split,
)
from hpo_summarize.data.tokens import from_dataset, output_length, tokenize

__all__ = [
    "Dialogues",
    "count_leaks",
    "count_repeated",
    "from_dataset",
    "load_splits",
    "output_length",
    "read_dialogues",
    "split",
    "tokenize",
]
