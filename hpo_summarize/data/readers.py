"""One file as a `Table`: CSV, TSV, JSON, JSON Lines or Parquet, read strictly.

The readers of pandas and `datasets` guess: `NA` becomes a missing value, `007` the number 7, a
short row is filled up, a doubled column renamed. Here a cell of text stays what it is, and a file
that is not what its name says is refused with the line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeAlias

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Table, listed
from hpo_summarize.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*SEPARATORS, ".json", ".jsonl", ".parquet")
_GUESSED_ENCODINGS = ("utf-8-sig", "cp949")  # In the order of trying, for the hint in an error.
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")

# The lines of each row, numbered from 1, and its cells.
Rows: TypeAlias = list[tuple[range, list[str]]]


def read_file(path: Path, section: DataSection, name: str | None = None) -> Table:
    """Reads one file.

    Args:
        path: Path of the file, whose ending says what it is.
        section: The section `data`; its `encoding` and `separator` are used.
        name: What to call it in a message; default its path.

    Raises:
        DataError: It is missing, cannot be decoded, or is not what its ending says.
    """
    name = name or str(path)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        raise DataError(f"{name}: this file {what}; relative paths start at {Path.cwd()}")
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(f"{name}: the ending '{ending}' is unknown; known are {', '.join(ENDINGS)}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name}: the file cannot be read ({error.strerror})") from None
    if not content:
        raise DataError(f"{name}: the file is empty (0 bytes); give a file with dialogues")
    table = _parse(name, ending, content, section)
    if not table.rows:
        raise DataError(f"{name}: the file has no rows of data; give a file with dialogues")
    return table


def _parse(name: str, ending: str, content: bytes, section: DataSection) -> Table:
    if ending == ".parquet":
        return _parse_parquet(name, content)
    text = _decode(name, content, section.encoding)
    if ending in SEPARATORS:
        return _parse_separated(name, text, section.separator or SEPARATORS[ending])
    return _parse_json(name, text)


def _decode(name: str, content: bytes, encoding: str) -> str:
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        where = f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else "the content"
        raise DataError(
            f"{name}: {where} is not {encoding}; set data.encoding, "
            f"for example to {_guess_encoding(content)}"
        ) from None
    if (offset := text.find("\0")) >= 0:
        line = text.count("\n", 0, offset) + 1
        raise DataError(
            f"{name}: there is a NUL character in line {line}, which no text has; save the file "
            "again as text, or set data.encoding if it is UTF-16"
        )
    return text


def _guess_encoding(content: bytes) -> str:
    if content.startswith(_UTF16_MARKS):
        return "utf-16"
    for encoding in _GUESSED_ENCODINGS:
        try:
            content.decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    return "cp949 or utf-16"


def _parse_separated(name: str, text: str, separator: str) -> Table:
    lines = _split_cells(name, text, separator, csv.QUOTE_NONE)
    if not lines:
        raise DataError(f"{name}: the file has no header and no rows; give a file with dialogues")
    rows, note = _read_quotes(name, text, separator, lines) if '"' in text else (lines, None)
    columns = rows[0][1]
    _refuse_doubled(name, columns)
    _refuse_ragged(name, rows, separator)
    places = [f"line {numbers.start}" for numbers, _ in rows[1:]]
    notes = (f"{name}: {note}",) if note else ()
    return Table(name, columns, [cells for _, cells in rows[1:]], places, notes)


def _split_cells(name: str, text: str, separator: str, quoting: Any = csv.QUOTE_MINIMAL) -> Rows:
    """Every row that is not blank."""
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, delimiter=separator, strict=True, quoting=quoting)
    limit = csv.field_size_limit(max(len(text), 1))  # A setting of the module, put back below.
    found: Rows = []
    start = 1
    try:
        for cells in reader:
            if cells:
                found.append((range(start, reader.line_num + 1), cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}: the row at line {start} cannot be parsed ({error}); a quote inside a text "
            "is written twice, and the text stands in quotes"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return found


def _read_quotes(name: str, text: str, separator: str, lines: Rows) -> tuple[Rows, str | None]:
    """The rows of a file that has quotes, and what a user should know of how these are read.

    pandas and spreadsheets put quotes around a text with a separator, a quote or a line end, and
    write its own quotes twice (RFC 4180). In files made otherwise a quote is a character, and one
    that begins a text would swallow all rows up to the next one that ends a text. So quotes are
    characters where every line by itself has as many cells as the header, and with quotes as marks
    the file cannot be parsed, has fewer rows, or has quotes that RFC 4180 would write twice.
    In a file with commas, which are frequent in texts, they are marks in any case, and so they are
    in a file of one column, where every line is a whole row.

    Args:
        name: What to call the file in a message.
        text: Its content.
        separator: What separates its cells.
        lines: Its lines, with quotes as characters.
    """
    width = len(lines[0][1])
    may_be_characters, ragged = separator != "," and width > 1, _ragged(lines)
    try:
        rows = _split_cells(name, text, separator)
        _refuse_ragged(name, rows, separator)
    except DataError as error:
        if not may_be_characters:
            raise
        if ragged:
            raise DataError(f"{error}; with quotes as characters, {listed(ragged)}") from None
        return lines, _note_on_characters(lines)
    whole = {numbers.start for numbers, cells in lines if len(cells) == width}
    swallowed = [numbers for numbers, _ in rows if len(numbers) > 1 and whole.issuperset(numbers)]
    single = any('"' in cell and cell[0] != '"' for _, cells in lines for cell in cells)
    if may_be_characters and not ragged and (swallowed or single):
        return lines, _note_on_characters(lines)
    return rows, _note_on_swallowed(swallowed) if swallowed else None


def _note_on_characters(lines: Rows) -> str | None:
    opened = [f"line {n.start}" for n, cells in lines if any(c.startswith('"') for c in cells)]
    if not opened:
        return None  # Quotes inside of texts are characters in any case.
    return (
        f"quotes are read as characters of the texts ({listed(opened)}), since every line has "
        f"{len(lines[0][1])} cells by itself"
    )


def _note_on_swallowed(swallowed: list[range]) -> str:
    places = listed([f"lines {numbers.start} to {numbers.stop - 1}" for numbers in swallowed])
    count = f"{len(swallowed)} row{'s are' if len(swallowed) > 1 else ' is'}"
    return (
        f"{count} read from lines that could be rows of their own ({places}), since a text in "
        "quotes goes over them; where a quote is a character, put its text in quotes and write "
        "it twice"
    )


def _ragged(rows: Rows) -> list[str]:
    width = len(rows[0][1])
    return [f"line {n.start} has {len(cells)}" for n, cells in rows if len(cells) != width]


def _refuse_ragged(name: str, rows: Rows, separator: str) -> None:
    if ragged := _ragged(rows):
        raise DataError(
            f"{name}: the header has {len(rows[0][1])} columns, and {listed(ragged)}; put a text "
            f"that holds {separator!r} in quotes, or set data.separator"
        )


def _refuse_doubled(name: str, columns: Iterable[str]) -> None:
    columns = list(columns)
    doubled = sorted({column for column in columns if column and columns.count(column) > 1})
    if doubled:
        raise DataError(
            f"{name}: the column {', '.join(map(repr, doubled))} stands there more than once "
            f"(found: {', '.join(columns)}); rename or remove one of them"
        )


def _parse_json(name: str, text: str) -> Table:
    """A list of objects, or one object a line, whichever it is."""
    if text.lstrip().startswith("["):
        objects = _load_json(name, "the file", text)
        places = [f"object {number}" for number in range(1, len(objects) + 1)]
    else:  # Not splitlines(): a JSON text may hold the other characters that break lines.
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        places = [f"line {number}" for number, _ in lines]
        objects = [_load_json(name, f"line {number}", line) for number, line in lines]
    for place, item in zip(places, objects, strict=True):
        if not isinstance(item, dict):
            raise DataError(
                f"{name}: {place} is a {type(item).__name__}, not an object with a dialogue; "
                "a file is a list of objects, or has one object a line"
            )
    return table_of(name, objects, places)


def _load_json(name: str, place: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}: {place} is not valid JSON ({error}); a .json file is a list of objects "
            "or has one object a line"
        ) from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [key for key, _ in pairs]
    if len(set(names)) != len(names):
        raise ValueError(f"a key stands twice among {', '.join(names)}")
    return dict(pairs)


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON value")


def _parse_parquet(name: str, content: bytes) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: this is no Parquet file ({str(error).splitlines()[0]}); write it again, "
            "or correct its ending"
        ) from None
    _refuse_doubled(name, table.column_names)
    places = [f"row {number}" for number in range(1, table.num_rows + 1)]
    return table_of(name, table.to_pylist(), places)


def table_of(name: str, objects: list[dict[str, Any]], places: list[str]) -> Table:
    """Objects as a table; a key that an object lacks is a None in its row."""
    columns = list(dict.fromkeys(key for item in objects for key in item))
    return Table(name, columns, [[item.get(c) for c in columns] for item in objects], places)
