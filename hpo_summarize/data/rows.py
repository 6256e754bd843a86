"""From the cells of a table to dialogues and summaries as text."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Columns, Dialogues, Table, find_columns, listed
from hpo_summarize.errors import DataError

# Fields of a turn, written small and without "_", "-" and spaces. Of several that have a value the
# first one of the list is read.
_SPEAKER_FIELDS = (
    *("speaker", "role", "name", "participant", "author", "user", "sender", "who", "from"),
    *("speakername", "participantname", "username"),
    *("speakerid", "participantid", "authorid", "userid", "senderid"),
)
_TEXT_FIELDS = ("text", "utterance", "content", "message", "value", "sentence", "form")
_SEPARATORS = re.compile(r"[_\-\s]")
_SHOWN_FIELDS = 8


def to_dialogues(
    table: Table, section: DataSection, require_summaries: bool = True, keep_empty: bool = False
) -> Dialogues:
    """The dialogues of a table.

    Cells are taken word for word, with two exceptions: turns in a list become lines, and a
    Windows line end becomes a plain one.

    Args:
        table: The cells.
        section: Names the columns, and says what becomes of rows without a text.
        require_summaries: Whether every row must have a summary.
        keep_empty: Rows without a text stay, whatever the section says.

    Raises:
        DataError: A column is missing, a cell is no text, or a row has no text and
            `section.empty_rows` refuses those.
    """
    columns = find_columns(table, section, require_summaries)
    cells, notes = _join_turns(table, columns)
    dialogues = _texts(table, columns.dialogue, [[cell] for cell in cells])
    summaries = {name: _texts(table, name, _lists(table, name)) for name in columns.summaries}
    references: list[list[str]] = [[] for _ in dialogues]
    for found in summaries.values():
        for row, texts in zip(references, found, strict=True):
            row += [text for text in texts if text.strip()]
    ids = _identifiers(table, columns.identifier)
    notes = [*table.notes, *columns.notes, *notes, *_notes_on_missing(table, references, summaries)]
    data = Dialogues([texts[0] for texts in dialogues], references, ids, tuple(notes))
    if keep_empty:
        return data
    required = {columns.dialogue: dialogues}
    if require_summaries:
        required[listed(columns.summaries)] = references
    return _without_empty(table, data, required, section)


@dataclass
class _Turns:
    """Makes lines of the turns of a table, and remembers what of them was left out.

    Attributes:
        unread: The first value of each field that is neither speaker nor text.
        n_anonymous: Turns that are objects without a speaker.
    """

    unread: dict[str, Any] = field(default_factory=dict)
    n_anonymous: int = 0

    def line(self, turn: Any) -> str:
        """One turn of a dialogue as a line: a text, or a speaker with a text.

        Raises:
            ValueError: It is neither.
        """
        if isinstance(turn, str):
            return turn
        values = dict(turn) if isinstance(turn, Mapping) else {}
        texts = {key: value for key, value in values.items() if isinstance(value, str)}
        filled = {key: value for key, value in texts.items() if value}
        text = _first(_TEXT_FIELDS, filled) or _first(_TEXT_FIELDS, texts)
        if text is None:
            raise ValueError(
                f"a turn is {turn!r:.80}; write a text, or an object with "
                f"{'/'.join(_SPEAKER_FIELDS[:3])} and {'/'.join(_TEXT_FIELDS[:3])}"
            )
        speaker = _first(_SPEAKER_FIELDS, [key for key in values if _is_name(values[key])])
        self.n_anonymous += speaker is None
        for key, value in values.items():
            if value not in (None, "") and key not in (speaker, text):
                self.unread.setdefault(key, value)
        return texts[text] if speaker is None else f"{values[speaker]}: {texts[text]}"

    def note(self) -> str | None:
        """Names the fields that are not read, since a speaker may be among them."""
        if not self.unread:
            return None
        shown = [f"{key} ({value!r:.30})" for key, value in self.unread.items()][:_SHOWN_FIELDS]
        more = len(self.unread) - len(shown)
        note = f"fields of the turns that are not read: {', '.join(shown)}"
        note += f" and {more} more" * (more > 0)
        if self.n_anonymous:
            note += (
                f"; {self.n_anonymous} turns have no speaker, which is a text or a number in "
                f"{', '.join(_SPEAKER_FIELDS)}"
            )
        return note


def _is_name(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return value != "" and value == value  # NaN is not equal to itself.


def _first(wanted: Sequence[str], keys: Iterable[str]) -> str | None:
    """The key with the first of the wanted names; of keys with one name the first."""
    names: dict[str, str] = {}
    for key in keys:
        names.setdefault(_plain(key), key)
    return next((names[name] for name in wanted if name in names), None)


@functools.lru_cache(maxsize=1024)
def _plain(key: str) -> str:
    return _SEPARATORS.sub("", key).casefold()


def _join_turns(table: Table, columns: Columns) -> tuple[list[Any], list[str]]:
    """The cells of the dialogues, turns in a list as lines, and what a user should know of them."""
    cells, turns = [], _Turns()
    for place, cell in zip(table.places, table.column(columns.dialogue), strict=True):
        try:
            cells.append("\n".join(map(turns.line, cell)) if isinstance(cell, list) else cell)
        except ValueError as error:
            raise DataError(f"{table.name}: {place}, '{columns.dialogue}': {error}") from None
    note = turns.note()
    return cells, [f"{table.name}: {note}"] if note else []


def _lists(table: Table, name: str) -> list[list[Any]]:
    return [cell if isinstance(cell, list) else [cell] for cell in table.column(name)]


def _texts(table: Table, name: str, cells: Sequence[Sequence[Any]]) -> list[list[str]]:
    found = []
    for place, parts in zip(table.places, cells, strict=True):
        try:
            found.append([_text(part) for part in parts])
        except ValueError as error:
            raise DataError(f"{table.name}: {place}, '{name}': {error}") from None
    return found


def _text(cell: Any) -> str:
    """A cell as text; one without a value is empty.

    Raises:
        ValueError: It is no text, or not one that a tokenizer can read.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        raise ValueError(f"the cell is {cell!r:.80}, not a text; write a text there")
    text = str(cell).replace("\r\n", "\n")
    if "\0" in text:
        raise ValueError("the text has a NUL character; take it out")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of one; save the text again") from None
    return text


def _notes_on_missing(
    table: Table, references: list[list[str]], summaries: Mapping[str, list[list[str]]]
) -> list[str]:
    """Says that rows have a part of their summaries only."""
    places = [
        place
        for place, found, cells in zip(table.places, references, zip(*summaries.values()))
        if 0 < len(found) < sum(max(len(texts), 1) for texts in cells)
    ]
    if not places:
        return []
    rows = f"{len(places)} of {len(references)} rows lack one of several summaries"
    return [f"{table.name}: {rows} ({listed(places)}); the others count"]


def _identifiers(table: Table, name: str | None) -> list[str]:
    if name is None:
        return [str(number) for number in range(len(table.rows))]
    return [str(cell) for cell in table.column(name)]


def _without_empty(
    table: Table, data: Dialogues, parts: Mapping[str, list[list[str]]], section: DataSection
) -> Dialogues:
    """Refuses or drops the rows that lack a text in one of the columns."""
    empty: set[int] = set()
    for name, cells in parts.items():
        wrong = [row for row, texts in enumerate(cells) if not any(map(str.strip, texts))]
        if wrong and section.empty_rows == "refuse":
            places = listed([table.places[row] for row in wrong])
            raise DataError(
                f"{table.name}: {len(wrong)} of {len(data)} rows have no text in the column "
                f"'{name}' ({places}); fill them in, or set data.empty_rows to drop"
            )
        empty.update(wrong)
    if not empty:
        return data
    if len(empty) == len(data):
        raise DataError(f"{table.name}: not one of the {len(data)} rows has all its texts")
    places = listed([table.places[row] for row in sorted(empty)])
    note = f"{table.name}: {len(empty)} of {len(data)} rows without a text are dropped ({places})"
    return data.rows([i for i in range(len(data)) if i not in empty]).with_notes(note)
