"""One split as text, and the table that it is made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any


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
