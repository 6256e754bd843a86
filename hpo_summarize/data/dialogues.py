"""From the cells of a table to dialogues and summaries as text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from hpo_summarize.config.schema import DataSection
from hpo_summarize.errors import DataError, did_you_mean

T = TypeVar("T")

# Usual names of columns, in order of preference; the first of each needs no note.
_DIALOGUE = ("dialogue", "dialog", "conversation", "text")
_SUMMARY = ("summary", "summaries")
_ID = ("fname", "id")
_NUMBERED_SUMMARY = re.compile(r"summary[ _-]?(\d+)", re.IGNORECASE)
# Usual names of the fields of a turn, in order of preference, as `_plain` writes them.
_SPEAKER_FIELDS = (
    *("speaker", "role", "name", "participant", "author", "user", "sender", "who", "from"),
    *("speakername", "participantname", "username"),
    *("speakerid", "participantid", "authorid", "userid", "senderid"),
)
_TEXT_FIELDS = ("text", "utterance", "content", "message", "value", "sentence", "form")


@dataclass(frozen=True)
class Table:
    """The cells of a file or a data set, unconverted.

    Attributes:
        name: Name of the table for messages.
        columns: The cells of each column.
        places: Where each row is, as in `line 7`.
        notes: Warnings about how the cells were read, one sentence each.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    places: Sequence[str]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dialogues:
    """One split as text.

    Attributes:
        dialogues: One text a row.
        references: The reference summaries of each row; at least one where summaries are required.
        ids: The identifier of each row (`fname` or `id`), or its number from 0.
        notes: Warnings about how the rows were read, one sentence each.
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


def listed(places: Sequence[str], shown: int = 5) -> str:
    """The first few of many places, as in `line 3, line 9, ...`."""
    return ", ".join(places[:shown]) + (", ..." if len(places) > shown else "")


def to_dialogues(
    table: Table, section: DataSection, require_summaries: bool = True, keep_empty: bool = False
) -> Dialogues:
    """The dialogues of a table.

    Texts are taken exactly as they are, with two exceptions: a list of turns becomes lines, and a
    Windows line end becomes a plain one.

    Args:
        table: The cells.
        section: Names the columns, and says whether rows without a text are refused or dropped.
        require_summaries: Whether every row must have a summary.
        keep_empty: Keep rows without a text, whatever the section says.

    Raises:
        DataError: A column is missing, a cell is not text, or a row has no text and
            `section.empty_rows` refuses those.
    """
    dialogue, summaries, notes = _find_columns(table, section, require_summaries)
    turns = _Turns()
    dialogues = _convert(table, dialogue, lambda cell: _text(turns.join(cell)))
    texts = [_convert(table, name, _texts) for name in summaries]
    rows = [[text for cell in cells for text in cell] for cells in zip(*texts, strict=True)]
    references = [list(filter(str.strip, row)) for row in rows] or [[] for _ in dialogues]
    notes += [*_partial_note(table, rows, references), *turns.notes()]
    data = Dialogues(
        dialogues,
        references,
        _identifiers(table, section),
        (*table.notes, *(f"{table.name}: {note}" for note in notes)),
    )
    if keep_empty:
        return data
    required = {dialogue: [bool(text.strip()) for text in dialogues]}
    if require_summaries:
        required[listed(summaries)] = list(map(bool, references))
    return _without_empty(table, data, required, section)


def _find_columns(
    table: Table, section: DataSection, require_summaries: bool
) -> tuple[str, list[str], list[str]]:
    """The columns of the dialogue and the summaries, and notes on those that were guessed."""
    dialogue = section.dialogue_column or _guess(table, _DIALOGUE)
    named = section.summary_column
    summaries = [named] if isinstance(named, str) else list(named or _guess_summaries(table))
    if dialogue is None or dialogue not in table.columns:
        raise _missing_column(table, "dialogue_column", dialogue, _DIALOGUE)
    if not require_summaries and not set(summaries) <= set(table.columns) - {dialogue}:
        summaries = []
    elif dialogue in summaries:
        raise DataError(
            f"{table.name}: the dialogues and the summaries are both read from '{dialogue}'; set "
            "data.dialogue_column or data.summary_column to another one of the columns found, "
            f"{', '.join(map(repr, table.columns))}"
        )
    elif require_summaries and not (summaries and set(summaries) <= set(table.columns)):
        missing = next((name for name in summaries if name not in table.columns), None)
        raise _missing_column(table, "summary_column", missing, _SUMMARY)
    notes = []
    if not section.dialogue_column and dialogue != _DIALOGUE[0]:
        notes.append(f"the dialogues are read from '{dialogue}'")
    if not named and summaries not in ([], [_SUMMARY[0]]):
        notes.append(f"the summaries are read from {', '.join(map(repr, summaries))}")
    return dialogue, summaries, notes


def _guess(table: Table, names: Sequence[str]) -> str | None:
    known = {column.strip().lower(): column for column in reversed(list(table.columns))}
    return next((known[name] for name in names if name in known), None)


def _guess_summaries(table: Table) -> list[str]:
    if (column := _guess(table, _SUMMARY)) is not None:
        return [column]
    numbered = [(_NUMBERED_SUMMARY.fullmatch(column.strip()), column) for column in table.columns]
    return [column for _, column in sorted((int(m[1]), column) for m, column in numbered if m)]


def identifier_column(table: Table, section: DataSection) -> str | None:
    """The column that identifies the rows; None if there is none.

    Raises:
        DataError: The recipe names a column that does not exist.
    """
    if section.id_column is not None and section.id_column not in table.columns:
        raise _missing_column(table, "id_column", section.id_column, _ID)
    return section.id_column or _guess(table, _ID)


def _identifiers(table: Table, section: DataSection) -> list[str]:
    name = identifier_column(table, section)
    return [
        str(cell) for cell in (range(len(table.places)) if name is None else table.columns[name])
    ]


def _missing_column(table: Table, key: str, wanted: str | None, usual: Sequence[str]) -> DataError:
    columns = list(table.columns)
    what = (
        f"there is no column '{wanted}'" if wanted else f"no column is called {' or '.join(usual)}"
    )
    step = f"set data.{key}{did_you_mean(wanted or usual[0], columns)}"
    if len(columns) == 1 and (separator := next((s for s in ";\t|," if s in columns[0]), None)):
        step = f"set data.separator to {separator!r}"
    found = ", ".join(map(repr, columns))
    return DataError(f"{table.name}: {what}; the columns found are {found}; {step}")


def _convert(table: Table, column: str, convert: Callable[[Any], T]) -> list[T]:
    """Converts every cell of a column; the error for a cell names its place."""
    found = []
    for place, cell in zip(table.places, table.columns[column], strict=True):
        try:
            found.append(convert(cell))
        except ValueError as error:
            raise DataError(f"{table.name}: {place}, '{column}': {error}") from None
    return found


def _partial_note(
    table: Table, rows: Sequence[list[str]], references: Sequence[list[str]]
) -> list[str]:
    """A note on the rows with only some of their summaries, or nothing."""
    triples = zip(table.places, rows, references, strict=False)
    partial = [place for place, row, found in triples if 0 < len(found) < len(row)]
    if not partial:
        return []
    rule = f"{len(partial)} of {len(references)} rows lack one of several summaries"
    return [f"{rule} ({listed(partial)}); the others are used"]


def _texts(cell: Any) -> list[str]:
    return [_text(part) for part in (cell or [None] if isinstance(cell, list) else [cell])]


def _text(cell: Any) -> str:
    """A cell as text, empty for a missing value.

    Raises:
        ValueError: It is not text, or not text that a tokenizer can read.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise ValueError(f"the cell is {cell!r:.80}, not a text; write a text there")
    text = str(cell).replace("\r\n", "\n")
    if "\0" in text:
        raise ValueError("the text has a NUL character; remove it")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start} is half of a surrogate pair; save the text again"
        ) from None
    return text


class _Turns:
    """Joins turns to lines, and counts what is not read of them."""

    def __init__(self) -> None:
        self._unread: dict[str, None] = {}
        self._n_anonymous = 0

    def join(self, cell: Any) -> Any:
        """The lines of a list of turns; any other cell as it is."""
        return "\n".join(map(self._line, cell)) if isinstance(cell, list) else cell

    def _line(self, turn: Any) -> str:
        """One turn, which is a text, or an object with a text and perhaps a speaker."""
        if isinstance(turn, str):
            return turn
        given: dict[str, Any] = turn if isinstance(turn, dict) else {}
        fields = {_plain(key): value for key, value in reversed(given.items())}
        texts = [name for name in _TEXT_FIELDS if isinstance(fields.get(name), str)]
        speakers = [name for name in _SPEAKER_FIELDS if _is_name(fields.get(name))]
        if not texts:
            raise ValueError(
                f"a turn is {turn!r:.80}; write a text, or an object with "
                f"{'/'.join(_SPEAKER_FIELDS[:3])} and {'/'.join(_TEXT_FIELDS[:3])}"
            )
        read = {next(filter(fields.get, texts), texts[0]): None, **dict.fromkeys(speakers[:1])}
        self._n_anonymous += not speakers
        for key, value in given.items():
            if value not in (None, "") and _plain(key) not in read:
                self._unread[key] = None
        return ": ".join(str(fields[name]) for name in reversed(read))

    def notes(self) -> Iterator[str]:
        """A note on fields that are not read, since the speaker may be among them."""
        if self._unread:
            note = f"fields of the turns that are not read: {listed(list(self._unread), 8)}"
            if self._n_anonymous:
                note += (
                    f"; {self._n_anonymous} turns have no speaker, which is a text or a number in "
                    f"{', '.join(_SPEAKER_FIELDS)}"
                )
            yield note


def _plain(key: str) -> str:
    return re.sub(r"[_\-\s]", "", key).casefold()


def _is_name(value: Any) -> bool:
    is_scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
    return is_scalar and value != "" and value == value  # NaN differs from itself.


def _without_empty(
    table: Table, data: Dialogues, required: Mapping[str, Sequence[bool]], section: DataSection
) -> Dialogues:
    """Refuses or drops the rows that lack a text in one of the columns."""
    for column, has_text in required.items():
        if section.empty_rows == "refuse" and not all(has_text):
            places = [place for place, full in zip(table.places, has_text, strict=True) if not full]
            raise DataError(
                f"{table.name}: {len(places)} of {len(data)} rows have no text in the column "
                f"'{column}' ({listed(places)}); fill them in, or set data.empty_rows to drop"
            )
    full = [row for row, texts in enumerate(zip(*required.values(), strict=True)) if all(texts)]
    if not full:
        raise DataError(f"{table.name}: none of the {len(data)} rows has all its texts")
    if len(full) == len(data):
        return data
    places = [table.places[row] for row in sorted(set(range(len(data))) - set(full))]
    counts = f"{len(places)} of {len(data)} rows without a text are dropped"
    return data.rows(full).with_notes(f"{table.name}: {counts} ({listed(places)})")
