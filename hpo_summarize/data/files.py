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
from typing import Any

from hpo_summarize.data.dialogues import Table, listed
from hpo_summarize.errors import DataError
from hpo_summarize.recipe import DataSection

SEPARATORS = {".csv": ",", ".tsv": "\t"}
ENDINGS = (*SEPARATORS, ".json", ".jsonl", ".parquet")
_GUESSED_ENCODINGS = ("utf-8-sig", "cp949")  # In the order of trying, for the hint in an error.
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


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
    lines = _split_cells(name, text, separator)
    if not lines:
        raise DataError(f"{name}: the file has no header and no rows; give a file with dialogues")
    columns = lines[0][1]
    _refuse_doubled(name, columns)
    ragged = [f"line {line} has {len(row)}" for line, row in lines if len(row) != len(columns)]
    if ragged:
        raise DataError(
            f"{name}: the header has {len(columns)} columns, and {listed(ragged)}; put a text "
            f"that holds {separator!r} in quotes, or set data.separator"
        )
    places = [f"line {line}" for line, _ in lines[1:]]
    return Table(name, columns, [row for _, row in lines[1:]], places)


def _split_cells(name: str, text: str, separator: str) -> list[tuple[int, list[str]]]:
    """The number of its first line, and the cells, of every row that is not blank."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    limit = csv.field_size_limit(max(len(text), 1))  # A setting of the module, put back below.
    found, start = [], 1
    try:
        for row in reader:
            if row:
                found.append((start, row))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{name}: the row at line {start} cannot be parsed ({error}); a quote inside a text "
            "is written twice, and the text stands in quotes"
        ) from None
    finally:
        csv.field_size_limit(limit)
    return found


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
