"""Text to token ids and back, and what of a reference is lost on the way."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Dialogues, to_dialogues
from hpo_summarize.data.sources import dataset_table
from hpo_summarize.models.families import ENCODER_DECODER, Family
from hpo_summarize.models.tokenizer import with_spaces
from hpo_summarize.rouge import MEASURES, Rouge

_COVERED = 99.5  # Percent of the training references that an output may be as long as.
_MARGIN = 1.1


def tokenize(
    data: Dialogues,
    tokenizer: PreTrainedTokenizerBase,
    section: DataSection,
    family: Family = ENCODER_DECODER,
) -> Dataset:
    """Token ids for the model.

    Args:
        data: Rows with at least one reference; the first one becomes the labels.
        tokenizer: The model's.
        section: The section `data`, whose limits no row exceeds.
        family: The model's.

    Returns:
        A data set with `input_ids`, `attention_mask` and `labels`, one list of ints a row.
    """
    columns = family.encode(data.dialogues, _first_references(data), tokenizer, section)
    return Dataset.from_dict(columns)


def summary_tokens(
    data: Dialogues,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None = None,
    family: Family = ENCODER_DECODER,
) -> list[list[int]]:
    """Token ids of the first references, with the end-of-sequence token; see `Family`."""
    return family.encode_summaries(_first_references(data), tokenizer, limit)


def _first_references(data: Dialogues) -> list[str]:
    return [references[0] for references in data.references]


def output_length(
    data: Dialogues,
    tokenizer: PreTrainedTokenizerBase,
    section: DataSection,
    family: Family = ENCODER_DECODER,
) -> int:
    """How many tokens generated summaries may have, judged by the references of a training split.

    A model that has learned from them writes no longer summaries, unless it fails to find an end,
    and then every further token costs time and precision. The length is that of 99.5% of the
    labels (a few outliers among thousands do not count), and a tenth more, for dialogues that
    have more to tell than those.

    Args:
        data: Rows with at least one reference; the first one counts, cut as in training.
        tokenizer: The model's.
        section: The section `data`; its `max_summary_tokens` is used.
        family: The model's.
    """
    labels = summary_tokens(data, tokenizer, section.max_summary_tokens, family)
    usual = np.percentile([len(row) for row in labels], _COVERED, method="inverted_cdf")
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


_SCORED_ROWS = 500  # Enough for two digits; a morphological analyser takes a second for them.
_SHOWN_FAULTS = 5
_N_EXAMPLES = 3
_TOLERATED = 0.005  # Share of the references, or of the score, that may be lost unmentioned.


@dataclass(frozen=True)
class RoundTrip:
    """What is left of references that became token ids and then text again.

    Attributes:
        rows: Number of rows; the first reference of each counts.
        changed: Rows whose reference does not come back as it was, but for white space.
        cut: Rows whose reference has more than `limit` tokens.
        limit: Most tokens of a generated summary.
        faults: Changed rows by the token or the character that does not come back as it was.
        examples: A few changed references as they were and as they come back.
        ceiling: The most that a model can score, which writes every reference as far as tokens and
            limit let it: ROUGE F1, 0 to 1, by name.
    """

    rows: int
    changed: int
    cut: int
    limit: int
    faults: dict[str, int]
    examples: list[tuple[str, str]]
    ceiling: dict[str, float]

    def note(self) -> str | None:
        """What a user should know where a perfect model scores below 1, or many texts change."""
        if max(self.changed / self.rows, 1 - min(self.ceiling.values())) < _TOLERATED:
            return None
        causes = []
        if self.changed:
            shown = ", ".join(f"{t!r} in {n}" for t, n in [*self.faults.items()][:_SHOWN_FAULTS])
            causes.append(
                f"the tokenizer changes {self.changed} of {self.rows} references"
                + (f" ({shown})" if shown else "")
            )
        if self.cut:
            causes.append(f"{self.cut} of {self.rows} have more than {self.limit} tokens")
        return f"a perfect model would score at most {self.scores()}: {' and '.join(causes)}"

    def scores(self) -> str:
        """The ceiling in words."""
        return ", ".join(f"{name} {value:.4f}" for name, value in self.ceiling.items())


def round_trip(
    references: Sequence[str],
    labels: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    rouge: Rouge,
    limit: int,
) -> RoundTrip:
    """Compares references with what their token ids are decoded to.

    Args:
        references: One text a row.
        labels: Its token ids, not cut.
        tokenizer: The model's.
        rouge: Scores what comes back, of at most 500 rows that differ.
        limit: Most tokens of a generated summary.
    """
    texts = tokenizer.batch_decode(list(labels), skip_special_tokens=True)
    changed = [n for n, text in enumerate(texts) if text.split() != references[n].split()]
    cut = [n for n, row in enumerate(labels) if len(row) > limit]
    differing = sorted({*changed, *cut})
    scored = random.Random(0).sample(differing, min(_SCORED_ROWS, len(differing)))
    written = tokenizer.batch_decode([labels[n][:limit] for n in scored], skip_special_tokens=True)
    scores = rouge.score_rows(written, [references[n] for n in scored]) if scored else []
    share = len(differing) / max(len(references), 1)
    added = tokenizer.get_added_vocab()
    faults = Counter(f for n in changed for f in _faults(references[n], texts[n], added))
    return RoundTrip(
        rows=len(references),
        changed=len(changed),
        cut=len(cut),
        limit=limit,
        faults=dict(faults.most_common()),
        examples=[(references[n], texts[n].strip()) for n in changed[:_N_EXAMPLES]],
        ceiling={name: 1 - share * (1 - _mean(row[name] for row in scores)) for name in MEASURES},
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([*values] or [0.0]))


def _faults(before: str, after: str, added: Iterable[str]) -> set[str]:
    """Added tokens that are lost or lose the spaces around them, and characters that are lost."""
    before, after = " ".join(before.split()), " ".join(after.split())
    tokens = {t for t in added if t in before and with_spaces(t, before) != with_spaces(t, after)}
    for token in tokens:
        before = before.replace(token, "")
    return tokens | (set(before) - set(after))
