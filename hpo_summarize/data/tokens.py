"""Text to token ids and back."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset

from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.data.rows import to_dialogues
from hpo_summarize.data.sources import dataset_table
from hpo_summarize.recipe import DataSection

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COVERED = 99.5  # Percent of the training references that an output may be as long as.
_MARGIN = 1.1


def tokenize(data: Dialogues, tokenizer: PreTrainedTokenizerBase, section: DataSection) -> Dataset:
    """Token ids for the model.

    Returns:
        A data set with `input_ids`, `attention_mask` and `labels`, one list of ints a row, none
        longer than the recipe allows. The labels are those of the first reference and end with the
        end-of-sequence token, also where the tokenizer adds none (KoBART's): a model that never
        saw it would never stop.
    """
    inputs = tokenizer(data.dialogues, max_length=section.max_dialogue_tokens, truncation=True)
    columns = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    labels = summary_tokens(data, tokenizer, section.max_summary_tokens)
    return Dataset.from_dict({**columns, "labels": labels})


def summary_tokens(
    data: Dialogues, tokenizer: PreTrainedTokenizerBase, limit: int | None = None
) -> list[list[int]]:
    """The labels of each row, cut to `limit` tokens with the end-of-sequence token among them.

    Args:
        data: Rows with at least one reference; the first one counts.
        tokenizer: The model's.
        limit: Most tokens of a text; None cuts nothing.
    """
    texts = [references[0] for references in data.references]
    labels = tokenizer(text_target=texts, max_length=limit, truncation=limit is not None)
    end = tokenizer.eos_token_id
    if end is None:
        return labels["input_ids"]
    keep = None if limit is None else limit - 1
    # mBART's labels have the language after it.
    return [row if end in row[-2:] else [*row[:keep], end] for row in labels["input_ids"]]


def output_length(data: Dialogues, tokenizer: PreTrainedTokenizerBase, section: DataSection) -> int:
    """How many tokens generated summaries may have, judged by the references of a training split.

    A model that has learned from them writes no longer summaries, unless it fails to find an end,
    and then every further token costs time and precision. The length is that of 99.5% of the
    labels (a few outliers among thousands do not count), and a tenth more, for dialogues that
    have more to tell than those.

    Args:
        data: Rows with at least one reference; the first one counts, cut as in training.
        tokenizer: The model's.
        section: The section `data`; its `max_summary_tokens` is used.
    """
    lengths = [len(row) for row in summary_tokens(data, tokenizer, section.max_summary_tokens)]
    usual = np.percentile(lengths, _COVERED, method="inverted_cdf")
    return math.ceil(_MARGIN * usual)


def from_dataset(
    rows: Dataset, section: DataSection, tokenizer: PreTrainedTokenizerBase
) -> Dialogues:
    """A data set that the caller has loaded, as `Dialogues`.

    Args:
        rows: Rows with a dialogue and a summary column as in a file, or `input_ids` and `labels`.
        section: Names the columns.
        tokenizer: Turns token ids back into text.

    Raises:
        DataError: It has neither, or a row lacks a text.
    """
    if not {"input_ids", "labels"} <= set(rows.column_names):
        return to_dialogues(dataset_table("the data set given", rows), section)
    dialogues = tokenizer.batch_decode(list(rows["input_ids"]), skip_special_tokens=True)
    ids = [str(number) for number in range(len(rows))]
    return Dialogues(dialogues, [[text] for text in label_texts(rows, tokenizer)], ids)


def label_texts(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, skip_special_tokens: bool = True
) -> list[str]:
    """The column `labels` as text, without the -100 of padding; empty where there is none."""
    if "labels" not in rows.column_names:
        return []
    labels = [[token for token in row if token >= 0] for row in rows["labels"]]
    return tokenizer.batch_decode(labels, skip_special_tokens=skip_special_tokens)
