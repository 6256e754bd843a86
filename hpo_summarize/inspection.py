"""What a data set looks like to a model: lengths, losses, repetitions, examples."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
_TOLERATED_LOSS = 0.01  # Share of the text above which a setting is warned of.
_SHOWN_WORDS = 12  # Speakers and markers in the print.
_SPEAKER = re.compile(r"^[ \t]*([^\s:：][^:：\n]{0,29}?)[ \t]*[:：]", re.MULTILINE)
_MARKER = re.compile(r"#[^\s#]{1,30}#|<[^\s<>]{1,30}>|\[[A-Z_]{2,30}\]")


@dataclass(frozen=True)
class Lengths:
    """Lengths of the texts of one kind in one split.

    Attributes:
        percentiles: Tokens, with those that the tokenizer adds, by percentile.
        limit: The most that the recipe lets through.
        cut_rows: Rows above the limit.
        lost: Share of all tokens that the limit cuts off, 0 to 1.
        unknown: Share of all tokens that the tokenizer has no entry for, 0 to 1.
    """

    percentiles: dict[int, int]
    limit: int
    cut_rows: int
    lost: float
    unknown: float


@dataclass(frozen=True)
class SplitFacts:
    """One split.

    Attributes:
        rows: Number of rows.
        references: Fewest and most references of a row.
        dialogue: Lengths of the dialogues.
        summary: Lengths of the first references, the ones that a model is trained on; None where
            the rows have none.
        speakers: Rows by what stands before a colon at the start of a line.
        markers: Occurrences of `#...#`, `<...>`, `[...]` and the recipe's special tokens.
        repeated: Rows that repeat the dialogue of an earlier row.
        round_trip: What is left of the references as token ids; None where there are none.
    """

    rows: int
    references: tuple[int, int]
    dialogue: Lengths
    summary: Lengths | None
    speakers: dict[str, int]
    markers: dict[str, int]
    repeated: int
    round_trip: RoundTrip | None


@dataclass(frozen=True)
class Example:
    """One row as the model will see it: its token ids, turned back into text."""

    identifier: str
    dialogue: str
    summary: str


@dataclass(frozen=True)
class Inspection:
    """Everything that is known of a data set.

    Attributes:
        splits: Facts by the name of the split.
        leaks: Rows of the second split whose dialogue stands in the first one too.
        whole_markers: The markers found that are one token to the tokenizer.
        examples: The first rows of the first split.
        warnings: What a user should look at, one sentence each.
    """

    splits: dict[str, SplitFacts]
    leaks: dict[tuple[str, str], int]
    whole_markers: frozenset[str]
    examples: list[Example]
    warnings: list[str]


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
    facts = {
        name: _facts(split, tokenizer, section, rouge, limit) for name, split in splits.items()
    }
    pairs = combinations(splits, 2)
    leaks = {(one, other): count_leaks(splits[one], splits[other]) for one, other in pairs}
    markers = {marker for split in facts.values() for marker in split.markers}
    vocabulary = tokenizer.get_vocab()
    return Inspection(
        facts,
        leaks,
        frozenset(marker for marker in markers if marker in vocabulary),
        _examples(next(iter(splits.values())).head(n_examples), tokenizer, section),
        [*_split_warnings(facts), *_leak_warnings(leaks, facts)],
    )


def _facts(
    data: Dialogues,
    tokenizer: PreTrainedTokenizerBase,
    section: DataSection,
    rouge: Rouge,
    limit: int,
) -> SplitFacts:
    counts = [len(references) for references in data.references]
    dialogues = tokenizer(data.dialogues)["input_ids"]
    summary = trip = None
    if min(counts):
        labels, first = summary_tokens(data, tokenizer), [texts[0] for texts in data.references]
        trip = round_trip(first, labels, tokenizer, rouge, limit)
        summary = _lengths(labels, section.max_summary_tokens, tokenizer.unk_token_id)
    speakers = Counter(name for text in data.dialogues for name in set(_SPEAKER.findall(text)))
    return SplitFacts(
        len(data),
        (min(counts), max(counts)),
        _lengths(dialogues, section.max_dialogue_tokens, tokenizer.unk_token_id),
        summary,
        dict(speakers.most_common()),
        _markers(data, section.special_tokens),
        count_repeated(data),
        trip,
    )


def _lengths(tokens: Sequence[Sequence[int]], limit: int, unknown: int | None) -> Lengths:
    lengths = np.array([len(row) for row in tokens])
    total = max(int(lengths.sum()), 1)
    values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return Lengths(
        {percent: int(value) for percent, value in zip(PERCENTILES, values, strict=True)},
        limit,
        int((lengths > limit).sum()),
        float((lengths - limit).clip(min=0).sum()) / total,
        sum(list(row).count(unknown) for row in tokens) / total if unknown is not None else 0.0,
    )


def _markers(data: Dialogues, special_tokens: Iterable[str]) -> dict[str, int]:
    texts = [*data.dialogues, *(text for row in data.references for text in row)]
    found = Counter(marker for text in texts for marker in _MARKER.findall(text))
    for token in special_tokens:  # Whatever they look like; those in #...# are found already.
        found[token] = max(found[token], sum(text.count(token) for text in texts))
    return {marker: count for marker, count in found.most_common() if count}


def _examples(
    data: Dialogues, tokenizer: PreTrainedTokenizerBase, section: DataSection
) -> list[Example]:
    if not len(data):
        return []  # A tokenizer cannot take an empty list.
    if not all(data.references):
        data = Dialogues(data.dialogues, [[""] for _ in data.ids], data.ids)
    tokens = tokenize(data, tokenizer, section)
    return [
        Example(name, *(str(tokenizer.decode(row[key])) for key in ("input_ids", "labels")))
        for name, row in zip(data.ids, tokens, strict=True)
    ]


def _split_warnings(facts: Mapping[str, SplitFacts]) -> list[str]:
    found = []
    for name, split in facts.items():
        for kind, lengths in (("dialogue", split.dialogue), ("summary", split.summary)):
            if lengths is None:
                continue
            if lengths.lost > _TOLERATED_LOSS:
                found.append(
                    f"{name}: data.max_{kind}_tokens of {lengths.limit} cuts off "
                    f"{lengths.lost:.1%} of the text, in {lengths.cut_rows} of {split.rows} rows; "
                    f"nothing is lost at {lengths.percentiles[100]}, if the model can read so much"
                )
            if lengths.unknown > _TOLERATED_LOSS:
                found.append(
                    f"{name}: {lengths.unknown:.1%} of the {kind} tokens are unknown to the "
                    "tokenizer; choose a model of that language"
                )
        if split.round_trip is not None and (note := split.round_trip.note()):
            found.append(f"{name}: {note}")
    return found


def _leak_warnings(
    leaks: Mapping[tuple[str, str], int], facts: Mapping[str, SplitFacts]
) -> list[str]:
    return [
        f"{count} of {facts[other].rows} dialogues of {other} stand in {one} too; scores on them "
        "are too good"
        for (one, other), count in leaks.items()
        if count
    ]


def print_inspection(inspection: Inspection) -> None:
    """Prints an inspection as text, the warnings last."""
    for name, split in inspection.splits.items():
        fewest, most = split.references
        number = str(most) if fewest == most else f"{fewest} to {most}"
        print(f"{name}: {split.rows} rows, references a row: {number}, repeated: {split.repeated}")
        for kind, lengths in (("dialogue", split.dialogue), ("summary", split.summary)):
            if lengths is not None:
                print(_lengths_line(kind, lengths))
        if split.round_trip is not None:
            _print_round_trip(split.round_trip)
        print(f"  speakers  {_shown(split.speakers)}")
        pieces = {m: n for m, n in split.markers.items() if m not in inspection.whole_markers}
        whole = {m: n for m, n in split.markers.items() if m in inspection.whole_markers}
        print(f"  markers   one token each: {_shown(whole)}; in pieces: {_shown(pieces)}")
    for example in inspection.examples:
        print(f"\n{example.identifier}, as the model will see it\n{example.dialogue}")
        print(f"-> {example.summary}")
    print()
    for warning in inspection.warnings:
        print(f"warning: {warning}")


def _print_round_trip(trip: RoundTrip) -> None:
    print(
        f"  as tokens {trip.rows - trip.changed} of {trip.rows} references come back as they were, "
        f"{trip.cut} are cut at {trip.limit} tokens; "
        f"a perfect model would score at most {trip.scores()}"
    )
    for before, after in trip.examples:
        print(f"            {before!r}\n         -> {after!r}")


def _lengths_line(kind: str, lengths: Lengths) -> str:
    values = ", ".join(f"{value} ({percent}%)" for percent, value in lengths.percentiles.items())
    return (
        f"  {kind:<9} tokens {values}; the limit of {lengths.limit} cuts {lengths.cut_rows} "
        f"rows and {lengths.lost:.2%} of the text; unknown {lengths.unknown:.2%}"
    )


def _shown(counts: Mapping[str, int]) -> str:
    words = [f"{word} {count}" for word, count in counts.items()]
    more = f" and {len(words) - _SHOWN_WORDS} more" if len(words) > _SHOWN_WORDS else ""
    return (", ".join(words[:_SHOWN_WORDS]) or "none") + more
