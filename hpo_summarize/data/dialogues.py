"""One split as text, and the table and its columns that it is made from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hpo_summarize.config.schema import DataSection
from hpo_summarize.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Dialogues:
    """One split as text.

    Attributes:
        dialogues: One text a row.
        references: The reference summaries of each row; at least one where summaries are wanted.
        ids: The identifier of each row (`fname` or `id`), or its number from 0.
        notes: What a user should know of how the rows were read, one sentence each.
    """

    dialogues: list[str]
    references: list[list[str]]
    ids: list[str]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.dialogues)

    def texts(self) -> Iterator[str]:
        """Every dialogue and every reference, row by row."""
        for dialogue, references in zip(self.dialogues, self.references, strict=True):
            yield dialogue
            yield from references

    def rows(self, indices: Sequence[int]) -> Dialogues:
        """The rows with these numbers, in this order, with the same notes."""
        return Dialogues(
            [self.dialogues[i] for i in indices],
            [self.references[i] for i in indices],
            [self.ids[i] for i in indices],
            self.notes,
        )

    def head(self, count: int | None) -> Dialogues:
        """The first `count` rows; all of them where it is None."""
        return self if count is None else self.rows(range(min(count, len(self))))

    def with_notes(self, *notes: str) -> Dialogues:
        """The same rows with more notes."""
        return replace(self, notes=(*self.notes, *notes))


def joined(parts: Sequence[Dialogues]) -> Dialogues:
    """The rows and the notes of all parts, one after the other."""
    return Dialogues(
        [text for part in parts for text in part.dialogues],
        [texts for part in parts for texts in part.references],
        [name for part in parts for name in part.ids],
        tuple(note for part in parts for note in part.notes),
    )


@dataclass(frozen=True)
class Table:
    """Cells as they were read, before anything is made of them.

    Attributes:
        name: What to call the table in a message.
        columns: Names of the columns.
        rows: One list of cells a row, in the order of `columns`.
        places: Place of each row in its file, as in `line 7`.
        notes: What a user should know of how the cells were read, one sentence each.
    """

    name: str
    columns: list[str]
    rows: list[list[Any]]
    places: list[str]
    notes: tuple[str, ...] = ()

    def column(self, name: str) -> Iterator[Any]:
        """The cells of one column."""
        index = self.columns.index(name)
        return (row[index] for row in self.rows)


def listed(places: Sequence[str], shown: int = 5) -> str:
    """The first few of many places, as in `line 3, line 9, ...`."""
    return ", ".join(places[:shown]) + (", ..." if len(places) > shown else "")


# Usual names, in the order of looking; the first of each is taken without a word.
_DIALOGUE = ("dialogue", "dialog", "conversation", "text")
_SUMMARY = ("summary", "summaries")
_ID = ("fname", "id")
_NUMBERED_SUMMARY = re.compile(r"summary[ _-]?(\d+)", re.IGNORECASE)
_OTHER_SEPARATORS = ";\t|,"


@dataclass(frozen=True)
class Columns:
    """The columns to read.

    Attributes:
        dialogue: Name of the column with the dialogue.
        summaries: Names of the columns with summaries; empty where there are none.
        identifier: Name of the column that tells the rows apart, if there is one.
        notes: What was guessed.
    """

    dialogue: str
    summaries: list[str]
    identifier: str | None
    notes: list[str]


def find_columns(table: Table, section: DataSection, require_summaries: bool = True) -> Columns:
    """Takes the columns that the recipe names, or the usual ones where it names none.

    Raises:
        DataError: A column that the recipe names is not there, or no usual one is, or one column
            would be both.
    """
    notes: list[str] = []
    dialogue = section.dialogue_column or _guess(table, _DIALOGUE)
    named = section.summary_column
    summaries = [named] if isinstance(named, str) else list(named or _guess_summaries(table))
    if dialogue is None or dialogue not in table.columns:
        raise _missing(table, "dialogue_column", dialogue, _DIALOGUE)
    if not section.dialogue_column and dialogue != _DIALOGUE[0]:
        notes.append(f"{table.name}: the dialogues are read from '{dialogue}'")
    if not require_summaries and not set(summaries) <= set(table.columns) - {dialogue}:
        summaries = []
    elif dialogue in summaries:
        raise DataError(
            f"{table.name}: the dialogues and the summaries are both read from '{dialogue}'; set "
            "data.dialogue_column or data.summary_column to another one of the columns found, "
            f"{', '.join(map(repr, table.columns))}"
        )
    elif wrong := [name for name in summaries if name not in table.columns]:
        raise _missing(table, "summary_column", wrong[0], _SUMMARY)
    elif not summaries and require_summaries:
        raise _missing(table, "summary_column", None, _SUMMARY)
    if not named and summaries and summaries != [_SUMMARY[0]]:
        names = ", ".join(f"'{name}'" for name in summaries)
        notes.append(f"{table.name}: the summaries are read from {names}")
    return Columns(dialogue, summaries, _identifier(table, section), notes)


def _guess(table: Table, names: Sequence[str]) -> str | None:
    for name in names:
        for column in table.columns:
            if column.strip().lower() == name:
                return column
    return None


def _guess_summaries(table: Table) -> list[str]:
    if (column := _guess(table, _SUMMARY)) is not None:
        return [column]
    numbered = [(_NUMBERED_SUMMARY.fullmatch(column.strip()), column) for column in table.columns]
    found = [(int(match[1]), column) for match, column in numbered if match]
    return [column for _, column in sorted(found)]


def _identifier(table: Table, section: DataSection) -> str | None:
    if section.id_column is not None and section.id_column not in table.columns:
        raise _missing(table, "id_column", section.id_column, _ID)
    return section.id_column or _guess(table, _ID)


def _missing(table: Table, key: str, wanted: str | None, usual: Sequence[str]) -> DataError:
    columns = table.columns
    found = f"the columns found are {', '.join(map(repr, columns))}"
    what = f"there is no column '{wanted}'"
    if wanted is None:
        what = f"no column is called {' or '.join(usual)}"
    separators = [s for s in _OTHER_SEPARATORS if len(columns) == 1 and s in columns[0]]
    if separators:
        return DataError(f"{table.name}: {what}; {found}: set data.separator to {separators[0]!r}")
    nearest = did_you_mean(wanted or usual[0], columns)
    return DataError(f"{table.name}: {what}; {found}; set data.{key}{nearest}")
