"""Training and validation split of a recipe, without dialogues that are in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Dialogues, identifier_column, joined, to_dialogues
from hpo_summarize.data.sources import find_splits, open_tables
from hpo_summarize.errors import DataError

_VALIDATION_SPLITS = ("validation", "dev", "val", "valid")

Source = str | Path | Sequence[str]


def load_splits(section: DataSection) -> tuple[Dialogues, Dialogues]:
    """The training and the validation split that a recipe names; the test split is not opened.

    Without a validation split, `validation_fraction` of the training rows are taken, by `seed`.
    `max_rows` comes last, so that it leaves rows in both splits and every row is checked.

    Raises:
        DataError: The data cannot be used as they are.
    """
    sources = [section.train or "train"] if not isinstance(section.train, list) else section.train
    validation_source = section.validation
    if validation_source is None and section.name is not None:
        splits = set(find_splits(section)).difference(sources)
        validation_source = next((name for name in _VALIDATION_SPLITS if name in splits), None)
    train = _read_all(sources, section)
    if validation_source is None:
        train, validation = split(train, section.validation_fraction, section.seed)
    else:
        validation = _read_all(validation_source, section)
        validation = validation.with_notes(*leak_notes(train, validation, "validation", section))
    return train.head(section.max_rows), validation.head(section.max_rows)


def read_dialogues(
    source: Source, section: DataSection, require_summaries: bool = True
) -> Dialogues:
    """Reads one split, at most `max_rows` of it.

    Args:
        source: As `data.train` in a recipe: a file, a glob or a list of them, or, where the recipe
            has `data.name`, the name of a split. A `Path` is always a file.
        section: How to read it.
        require_summaries: Whether rows without summaries are refused; otherwise a table without
            a summary column gives no references.

    Raises:
        DataError: The data cannot be used as they are.
    """
    return _read_all(source, section, require_summaries).head(section.max_rows)


def _read_all(source: Source, section: DataSection, require_summaries: bool = True) -> Dialogues:
    tables = open_tables(source, section)
    data = joined([to_dialogues(table, section, require_summaries) for table in tables])
    if not (repeated := count_repeated(data)):
        return data
    name = tables[0].name + f" and {len(tables) - 1} more" * (len(tables) > 1)
    note = f"{name}: {repeated} of {len(data)} rows repeat the dialogue of an earlier row"
    return data.with_notes(note)


def read_every_row(source: Source, section: DataSection) -> tuple[Dialogues, str | None]:
    """Reads dialogues to be summarised: every row, also one without a text.

    Args:
        source: Files, folder or data set, as for `read_dialogues`.
        section: How to read it; at most `max_rows` rows.

    Returns:
        The rows, and the name of the column that identifies them; None if there is none.

    Raises:
        DataError: The data cannot be used as they are.
    """
    tables = open_tables(source, section)
    parts = [to_dialogues(t, section, require_summaries=False, keep_empty=True) for t in tables]
    data, name = joined(parts), identifier_column(tables[0], section)
    if name is None:
        data = replace(data, ids=[str(number) for number in range(len(data))])
    kept = data.head(section.max_rows)
    if len(kept) < len(data):
        note = f"only the first {len(kept)} of {len(data)} rows are read, by data.max_rows"
        kept = kept.with_notes(note)
    return kept, name


def split(data: Dialogues, fraction: float, seed: int) -> tuple[Dialogues, Dialogues]:
    """Splits off `fraction` of the dialogues, at least one, at random by `seed`.

    Rows with the same dialogue stay together, so that none is in both parts. The notes go to
    the first part.

    Args:
        data: The rows to split.
        fraction: Share of the second part, above 0 and below 1.
        seed: The same seed gives the same split of the same rows.

    Raises:
        DataError: There are not two different dialogues.
    """
    groups = list(_by_dialogue(data).values())
    if len(groups) < 2:
        raise DataError(
            f"data.train has {len(groups)} different dialogue in {len(data)} rows, and a split "
            "needs two; add dialogues, or set data.validation"
        )
    size = min(max(1, round(len(groups) * fraction)), len(groups) - 1)
    numbers = Dataset.from_dict({"number": range(len(groups))})
    parts = numbers.train_test_split(test_size=size, seed=seed)
    chosen = [[row for n in parts[p]["number"] for row in groups[n]] for p in ("train", "test")]
    train, validation = (data.rows(rows) for rows in chosen)
    return train, Dialogues(validation.dialogues, validation.references, validation.ids)


def count_repeated(data: Dialogues) -> int:
    """How many rows repeat the dialogue of an earlier row, ignoring white space."""
    return len(data) - len(_by_dialogue(data))


def count_leaks(train: Dialogues, other: Dialogues) -> int:
    """How many rows of `other` have a dialogue that is in `train`, too, ignoring white space."""
    known = _by_dialogue(train)
    return sum(len(rows) for text, rows in _by_dialogue(other).items() if text in known)


def leak_notes(train: Dialogues, other: Dialogues, name: str, section: DataSection) -> list[str]:
    """A warning where dialogues are in the training split and in another one, or nothing.

    Args:
        train: What is trained on.
        other: What scores are measured on.
        name: Name of the other split, for the note.
        section: The section `data`; its `leaks` says whether they are refused.

    Raises:
        DataError: There are such dialogues, and the recipe refuses them.
    """
    count = count_leaks(train, other)
    if not count:
        return []
    message = f"{count} of {len(other)} {name} dialogues are in the training split, too"
    if section.leaks == "refuse":
        raise DataError(f"data: {message}; remove them from one, or set data.leaks to warn")
    return [f"{message}, and their scores are too high; data.leaks: refuse makes this an error"]


def _by_dialogue(data: Dialogues) -> dict[str, list[int]]:
    """The numbers of the rows that have the same dialogue, ignoring white space."""
    groups: dict[str, list[int]] = {}
    for row, text in enumerate(data.dialogues):
        groups.setdefault(" ".join(text.split()), []).append(row)
    return groups
