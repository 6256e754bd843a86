"""One file as a `Table`: CSV, TSV, JSON, JSON Lines or Parquet, read strictly.

The readers of pandas and `datasets` guess: `NA` becomes a missing value, `007` the number 7, a
short row is filled up, a doubled column renamed. Here a cell of text stays what it is, and a file
that does not match its ending is refused with the line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow
from pyarrow import parquet

from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Table, listed
from hpo_summarize.errors import DataError

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*SEPARATORS, ".json", ".jsonl", ".parquet")
# The lines of each row, numbered from 1, and its cells.
Rows: TypeAlias = list[tuple[range, list[str]]]


def read_file(name: str, path: Path, section: DataSection) -> Table:
    """Reads one file in the format of its ending.

    Args:
        name: Name of the file for messages.
        path: Its path.
        section: The section `data`; its `encoding` and `separator` are used.

    Raises:
        DataError: It does not exist, cannot be decoded, or does not match its ending.
    """
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
    if ending == ".parquet":
        table = _parse_parquet(name, content)
    elif ending in SEPARATORS:
        text = _decode(name, content, section.encoding)
        table = _parse_separated(name, text, section.separator or SEPARATORS[ending])
    else:
        table = _parse_json(name, _decode(name, content, section.encoding))
    if not table.places:
        raise DataError(f"{name}: the file has no rows of data; give a file with dialogues")
    return table


def numbered(kind: str, count: int) -> list[str]:
    """Places of rows that have no lines, as in `row 1`."""
    return [f"{kind} {number}" for number in range(1, count + 1)]


def first_line(error: Exception) -> str:
    """The first line of a message of a library."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(". ")


def _decode(name: str, content: bytes, encoding: str) -> str:
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        where = f"byte {error.start}" if isinstance(error, UnicodeDecodeError) else "the content"
        raise DataError(
            f"{name}: {where} is not {encoding}; set data.encoding "
            "(utf-8, cp949 and utf-16 are common)"
        ) from None
    if (offset := text.find("\0")) >= 0:
        line = text.count("\n", 0, offset) + 1
        raise DataError(
            f"{name}: there is a NUL character in line {line}; save the file again as text, or "
            "set data.encoding if it is UTF-16"
        )
    return text


def _parse_separated(name: str, text: str, separator: str) -> Table:
    rows, note = _read_rows(name, text, separator)
    if not rows:
        return Table(name, {}, [])
    (_, header), *body = rows
    _refuse_doubled(name, header)
    ragged = [f"line {n.start} has {len(cells)}" for n, cells in body if len(cells) != len(header)]
    if ragged:
        raise DataError(
            f"{name}: the header has {len(header)} columns, and {listed(ragged)}; put a text that "
            f"holds {separator!r} in quotes, or set data.separator"
        )
    columns = dict(zip(header, zip(*(cells for _, cells in body))))
    places = [f"line {numbers.start}" for numbers, _ in body]
    return Table(name, columns, places, (f"{name}: {note}",) if note else ())


def _read_rows(name: str, text: str, separator: str) -> tuple[Rows, str | None]:
    """The rows of a CSV or TSV, and a note where its quotes can be read in two ways.

    pandas and spreadsheets put quotes around a text with a separator, a quote or a line end, and
    write its own quotes twice (RFC 4180). In files made otherwise a quote is a character, and one
    that begins a text would join all rows up to the next one that ends a text. So quotes are
    characters where every line by itself has as many cells as the header, unless RFC 4180 gives
    the same rows. In a file with commas, which are frequent in texts, and in one of a single
    column, where every line is a whole row, RFC 4180 always applies.
    """
    lines = _split_cells(name, text, separator, csv.QUOTE_NONE)
    if '"' not in text or not lines:
        return lines, None
    width = len(lines[0][1])
    whole = {numbers.start for numbers, cells in lines if len(cells) == width}
    if separator != "," and width > 1 and len(whole) == len(lines):
        if not _follows_rfc4180(name, text, separator, lines):
            return lines, _note_on_characters(lines)
    rows = _split_cells(name, text, separator, csv.QUOTE_MINIMAL)
    joined = [n for n, _ in rows if len(n) > 1 and whole.issuperset(n)]
    if not joined:
        return rows, None
    places = listed([f"lines {numbers.start} to {numbers.stop - 1}" for numbers in joined])
    return rows, (
        f"{len(joined)} row{'s' * (len(joined) > 1)} in quotes over several lines that could each "
        f"be a row ({places}); where a quote is a character, put its text in quotes and write it "
        "twice"
    )


def _split_cells(name: str, text: str, separator: str, quoting: Any) -> Rows:
    """Every row that is not blank."""
    source = io.StringIO(text, newline="")
    reader = csv.reader(source, delimiter=separator, strict=True, quoting=quoting)
    limit = csv.field_size_limit(max(len(text), 1))  # A setting of the module, restored below.
    found: Rows = []
    start = 1
    try:
        for cells in reader:
            if cells:
                found.append((range(start, reader.line_num + 1), cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}: the row at line {start} cannot be parsed ({error}); write a quote inside "
            "a text twice, and put the text in quotes"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return found


def _follows_rfc4180(name: str, text: str, separator: str, lines: Rows) -> bool:
    """Whether quotes around texts give the same number of cells line by line, and are doubled."""
    if any('"' in cell and cell[0] != '"' for _, cells in lines for cell in cells):
        return False
    try:
        rows = _split_cells(name, text, separator, csv.QUOTE_MINIMAL)
    except DataError:
        return False
    return [len(cells) for _, cells in rows] == [len(cells) for _, cells in lines]


def _note_on_characters(lines: Rows) -> str | None:
    opened = [f"line {n.start}" for n, cells in lines if any(c.startswith('"') for c in cells)]
    if not opened:
        return None  # Quotes inside of texts are characters in any case.
    return f"quotes are read as characters of the texts ({listed(opened)})"


def _refuse_doubled(name: str, columns: Sequence[str]) -> None:
    doubled = sorted({column for column in columns if column and columns.count(column) > 1})
    if doubled:
        raise DataError(
            f"{name}: the column {', '.join(map(repr, doubled))} occurs more than once "
            f"(found: {', '.join(columns)}); rename or remove one of them"
        )


def _parse_json(name: str, text: str) -> Table:
    """A list of objects, or one object a line."""
    if text.lstrip().startswith("["):
        objects = _load_json(name, "the file", text)
        places = numbered("object", len(objects))
    else:  # Not splitlines(): a JSON text may hold the other characters that break lines.
        lines = {f"line {n}": line for n, line in enumerate(text.split("\n"), 1) if line.strip()}
        places, objects = [*lines], [_load_json(name, *item) for item in lines.items()]
    for place, item in zip(places, objects, strict=True):
        if not isinstance(item, dict):
            raise DataError(
                f"{name}: {place} is a {type(item).__name__}, not an object with a dialogue; "
                "a file is a list of objects, or has one object a line"
            )
    columns = dict.fromkeys(key for item in objects for key in item)
    return Table(name, {key: [item.get(key) for item in objects] for key in columns}, places)


def _load_json(name: str, place: str, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{name}: {place} is not valid JSON ({error}); a .json file is a list of objects "
            "or has one object a line"
        ) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(key for key, _ in pairs)}")
    return found


def _parse_parquet(name: str, content: bytes) -> Table:
    try:
        table = parquet.read_table(io.BytesIO(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: this is no Parquet file ({first_line(error)}); write it again, or correct "
            "its ending"
        ) from None
    _refuse_doubled(name, table.column_names)
    return Table(name, table.to_pydict(), numbered("row", table.num_rows))
