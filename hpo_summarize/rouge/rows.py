"""The rows that ROUGE scores, checked."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

# One text, or several, a row.
References = Sequence[str] | Sequence[Sequence[str]]

NOTHING = "there is nothing to score: got 0 rows; pass one or more predictions and references"


def checked_rows(predictions: Any, references: Any) -> tuple[list[str], list[list[str]]]:
    """Predictions and references as lists, each row's references as a list of its own.

    Raises:
        ValueError: No rows, not as many predictions as references, or an empty list of them.
        TypeError: Something that should be a text is none.
    """
    texts = _as_list(predictions, "predictions")
    rows = _as_list(references, "references")
    if len(texts) != len(rows):
        raise ValueError(
            "there must be as many predictions as rows of references, got "
            f"{len(texts)} and {len(rows)}; pair them row by row"
        )
    if not texts:
        raise ValueError(NOTHING)
    for number, text in enumerate(texts):
        _check_text(text, f"predictions[{number}]")
    return texts, [
        _checked_references(row, f"references[{number}]") for number, row in enumerate(rows)
    ]


def _checked_references(row: Any, place: str) -> list[str]:
    texts = list(row) if _is_list(row) else [row]
    if not texts:
        raise ValueError(f"{place} must hold one or more texts, got none; leave this row out")
    for text in texts:
        _check_text(text, place)
    return texts


def _as_list(values: Any, name: str) -> list[Any]:
    if not _is_list(values):
        raise TypeError(
            f"{name} must be a list with an entry for each row, got {reprlib.repr(values)}; "
            "put a single row into a list"
        )
    return list(values)


def _is_list(values: Any) -> bool:
    # The keys of a mapping are not its texts, and a set has lost their order.
    return isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping, Set))


def _check_text(text: Any, place: str) -> None:
    if not isinstance(text, str):
        raise TypeError(
            f"{place} must be text, got {reprlib.repr(text)} ({type(text).__name__}); decode token "
            "ids to text, and leave out rows without text"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} must be valid Unicode text, got half a surrogate pair at character "
            f"{error.start}; read the file as UTF-8 again, or replace that character"
        ) from error
