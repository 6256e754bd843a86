"""What a data set looks like to a model: lengths, losses, repetitions, examples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from transformers import PreTrainedTokenizerBase

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.data.splits import count_leaks, count_repeated
from hpo_summarize.models.tokenization import RoundTrip, round_trip, summary_tokens, tokenize
from hpo_summarize.rouge import Rouge

PERCENTILES = (5, 50, 95, 99, 100)
_TOLERATED_LOSS = 0.01  # Share of the text above which there is a warning.
_SHOWN_WORDS = 12  # Speakers and markers in the print.
_SPEAKER = re.compile(r"^[ \t]*([^\s:：][^:：\n]{0,29}?)[ \t]*[:：]", re.MULTILINE)
_MARKER = re.compile(r"#[^\s#]{1,30}#|<[^\s<>]{1,30}>|\[[A-Z_]{2,30}\]")


@dataclass(frozen=True)
class Lengths:
    """Lengths of the texts of one kind in one split.

    Attributes:
        kind: `"dialogue"` or `"summary"`.
        percentiles: Tokens, with those that the tokenizer adds, by percentile.
        limit: The most that the recipe lets through.
        cut_rows: Rows above the limit.
        lost: Share of all tokens that the limit cuts off, 0 to 1.
        unknown: Share of all tokens that the tokenizer has no entry for, 0 to 1.
    """

    kind: str
    percentiles: dict[int, int]
    limit: int
    cut_rows: int
    lost: float
    unknown: float

    def warnings(self, n_rows: int) -> list[str]:
        """What a user should look at, in a split of `n_rows` rows."""
        found = []
        if self.lost > _TOLERATED_LOSS:
            found.append(
                f"data.max_{self.kind}_tokens of {self.limit} cuts off {self.lost:.1%} of the "
                f"text, in {self.cut_rows} of {n_rows} rows; nothing is lost at "
                f"{self.percentiles[100]}, if the model can read so much"
            )
        if self.unknown > _TOLERATED_LOSS:
            found.append(
                f"{self.unknown:.1%} of the {self.kind} tokens are unknown to the tokenizer; "
                "choose a model of that language"
            )
        return found


@dataclass(frozen=True)
class SplitFacts:
    """One split.

    Attributes:
        rows: Number of rows.
        references: Fewest and most references of a row.
        lengths: Of the dialogues, and where every row has one, of the first references, which a
            model is trained on.
        speakers: Rows by what stands before a colon at the start of a line.
        markers: Occurrences of `#...#`, `<...>`, `[...]` and the recipe's special tokens.
        repeated: Rows that repeat the dialogue of an earlier row.
        round_trip: What is left of the references as token ids; None where there are none.
    """

    rows: int
    references: tuple[int, int]
    lengths: list[Lengths]
    speakers: dict[str, int]
    markers: dict[str, int]
    repeated: int
    round_trip: RoundTrip | None


@dataclass(frozen=True)
class Inspection:
    """Everything that is known of a data set.

    Attributes:
        splits: Facts by the name of the split.
        leaks: Rows of the second split whose dialogue is in the first one, too.
        whole_markers: The markers found that are one token to the tokenizer.
        examples: Name, dialogue and summary of the first rows of the first split, as they come back
            from token ids.
    """

    splits: dict[str, SplitFacts]
    leaks: dict[tuple[str, str], int]
    whole_markers: set[str]
    examples: list[tuple[str, str, str]]

    @property
    def warnings(self) -> list[str]:
        """What a user should look at, one sentence each."""
        found = []
        for name, split in self.splits.items():
            for lengths in split.lengths:
                found += [f"{name}: {warning}" for warning in lengths.warnings(split.rows)]
            if split.round_trip and (note := split.round_trip.note()):
                found.append(f"{name}: {note}")
        return found + [
            f"{count} of {self.splits[other].rows} dialogues of {other} are in {one}, too; scores "
            "on them are too good"
            for (one, other), count in self.leaks.items()
            if count
        ]


def inspect_data(
    splits: Mapping[str, Dialogues],
    tokenizer: PreTrainedTokenizerBase,
    section: DataSection,
    n_examples: int = 3,
    rouge: Rouge | None = None,
    max_new_tokens: int | None = None,
) -> Inspection:
    """Measures splits with the tokenizer and the limits that a model will be trained with.

    Args:
        splits: Splits by name, the training split first; none is empty.
        tokenizer: The model's, with the recipe's special tokens added.
        section: The section `data`; its `max_dialogue_tokens`, `max_summary_tokens` and
            `special_tokens` are used.
        n_examples: How many rows to show, from the start of the first split.
        rouge: The metric that summaries are scored with; None: the default one.
        max_new_tokens: Most tokens of a generated summary; None: `max_summary_tokens`.
    """
    limit, rouge = max_new_tokens or section.max_summary_tokens, rouge or Rouge()
    facts = {n: _facts(split, tokenizer, section, rouge, limit) for n, split in splits.items()}
    pairs = combinations(splits, 2)
    return Inspection(
        facts,
        {(one, other): count_leaks(splits[one], splits[other]) for one, other in pairs},
        tokenizer.get_vocab().keys() & {m for split in facts.values() for m in split.markers},
        _examples(next(iter(splits.values())).head(n_examples), tokenizer, section),
    )


def _facts(
    data: Dialogues,
    tokenizer: PreTrainedTokenizerBase,
    section: DataSection,
    rouge: Rouge,
    limit: int,
) -> SplitFacts:
    counts = [len(references) for references in data.references]
    unknown, trip = tokenizer.unk_token_id, None
    dialogues = tokenizer(data.dialogues)["input_ids"]
    lengths = [_lengths("dialogue", dialogues, section.max_dialogue_tokens, unknown)]
    if min(counts):
        labels, first = summary_tokens(data, tokenizer), [texts[0] for texts in data.references]
        trip = round_trip(first, labels, tokenizer, rouge, limit)
        lengths.append(_lengths("summary", labels, section.max_summary_tokens, unknown))
    speakers = Counter(name for text in data.dialogues for name in set(_SPEAKER.findall(text)))
    return SplitFacts(
        len(data),
        (min(counts), max(counts)),
        lengths,
        dict(speakers.most_common()),
        _markers(data, section.special_tokens),
        count_repeated(data),
        trip,
    )


def _lengths(
    kind: str, tokens: Sequence[Sequence[int]], limit: int, unknown: int | None
) -> Lengths:
    lengths = np.array([len(row) for row in tokens])
    total = max(int(lengths.sum()), 1)
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return Lengths(
        kind,
        {percent: int(value) for percent, value in zip(PERCENTILES, values, strict=True)},
        limit,
        int((lengths > limit).sum()),
        float((lengths - limit).clip(min=0).sum()) / total,
        sum(list(row).count(unknown) for row in tokens) / total if unknown is not None else 0.0,
    )


def _markers(data: Dialogues, special_tokens: Sequence[str]) -> dict[str, int]:
    texts = [*data.dialogues, *(text for row in data.references for text in row)]
    found = Counter(marker for text in texts for marker in _MARKER.findall(text))
    for token in special_tokens:  # Of any form; those in #...# are found already.
        found[token] = max(found[token], sum(text.count(token) for text in texts))
    return {marker: count for marker, count in found.most_common() if count}


def _examples(
    data: Dialogues, tokenizer: PreTrainedTokenizerBase, section: DataSection
) -> list[tuple[str, str, str]]:
    if not len(data):
        return []  # A tokenizer cannot take an empty list.
    if not all(data.references):
        data = Dialogues(data.dialogues, [[""] for _ in data.ids], data.ids)
    tokens = tokenize(data, tokenizer, section)
    return [
        (name, str(tokenizer.decode(row["input_ids"])), str(tokenizer.decode(row["labels"])))
        for name, row in zip(data.ids, tokens, strict=True)
    ]


def print_inspection(inspection: Inspection) -> None:
    """Prints an inspection as text, the warnings last."""
    for name, split in inspection.splits.items():
        fewest, most = split.references
        number = str(most) if fewest == most else f"{fewest} to {most}"
        print(f"{name}: {split.rows} rows, references a row: {number}, repeated: {split.repeated}")
        _print_texts(split)
        print(f"  speakers  {_shown(split.speakers)}")
        pieces = {m: n for m, n in split.markers.items() if m not in inspection.whole_markers}
        whole = {m: n for m, n in split.markers.items() if m in inspection.whole_markers}
        print(f"  markers   one token each: {_shown(whole)}; in pieces: {_shown(pieces)}")
    for name, dialogue, summary in inspection.examples:
        print(f"\n{name}, as the model will see it\n{dialogue}\n-> {summary}")
    print()
    for warning in inspection.warnings:
        print(f"warning: {warning}")


def _print_texts(split: SplitFacts) -> None:
    for one in split.lengths:
        values = ", ".join(f"{value} ({percent}%)" for percent, value in one.percentiles.items())
        print(
            f"  {one.kind:<9} tokens {values}; the limit of {one.limit} cuts {one.cut_rows} "
            f"rows and {one.lost:.2%} of the text; unknown {one.unknown:.2%}"
        )
    if (trip := split.round_trip) is not None:
        print(
            f"  as tokens {trip.rows - trip.changed} of {trip.rows} references are decoded "
            f"unchanged, {trip.cut} are cut at {trip.limit} tokens; "
            f"a perfect model would score at most {trip.scores()}"
        )
        for before, after in trip.examples:
            print(f"            {before!r}\n         -> {after!r}")


def _shown(counts: Mapping[str, int]) -> str:
    words = [f"{word} {count}" for word, count in counts.items()]
    more = f" and {len(words) - _SHOWN_WORDS} more" if len(words) > _SHOWN_WORDS else ""
    return (", ".join(words[:_SHOWN_WORDS]) or "none") + more
