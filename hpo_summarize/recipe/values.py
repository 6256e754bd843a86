"""Does a value have the type of the Hugging Face field that it is meant for?"""

from __future__ import annotations

import enum
import math
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from hpo_summarize.errors import Problem, did_you_mean

_SHOWN = 12  # Members of an enumeration that a message lists.
_PLAIN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping of keys to values",
}
DEEPEST = 20  # Levels of mappings and lists in a recipe.
TOO_DEEP = f"is nested more than {DEEPEST} levels deep; flatten it"
LARGEST = 2**63  # Whole numbers from here on fit in no integer of NumPy, torch or a database.


def unusable_values(value: Any, key: str = "", depth: int = 0) -> Iterator[Problem]:
    """Every value anywhere in `value` that no setting can take, whatever its type."""
    if isinstance(value, Mapping | list):
        if depth > DEEPEST:
            yield Problem(key, TOO_DEEP)
            return
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from unusable_values(inner, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, str):
        if "\0" in value or not value.isascii() and _has_surrogate(value):
            yield Problem(key, f"holds a character that no file can, got {value!r}; remove it")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield Problem(key, f"must be a finite number, got {value!r}")
    elif isinstance(value, int):
        if abs(value) >= LARGEST:
            yield Problem(key, f"must be a whole number below 2 to the power of 63, got {value!r}")
    elif value is not None:
        kind = type(value).__name__
        yield Problem(key, f"must not be a {kind}, got {value!r}; put text that looks so in quotes")


def last_part(value: Any) -> Any:
    """A value with the last part in the place of each absolute path and of each folder in it."""
    if isinstance(value, Mapping):
        return {key: last_part(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [last_part(inner) for inner in value]
    if not isinstance(value, str) or "\0" in value:
        return value
    path = Path(value)
    is_local = path.is_absolute() or value.startswith("~") or (value != "" and path.is_dir())
    return path.absolute().name if is_local else value


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def model_type_problem(value: Any) -> str | None:
    """Says why `value` cannot be a model type of the transformers library; None if it can."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if isinstance(value, str) and value in CONFIG_MAPPING_NAMES:
        return None
    nearest = did_you_mean(str(value), CONFIG_MAPPING_NAMES)
    return f"must be a model type of transformers, such as bart or t5, got {value!r}{nearest}"


def type_problem(value: Any, kind: Any) -> str | None:
    """Says why `value` cannot be a value of the type `kind`; None if it can.

    Nothing is converted: the text "1" is no number, and true is no 1. A whole number is a number.
    Where a field takes a member of an enumeration by its text, other texts are refused.
    """
    members = _enumeration(kind)
    if members and not (value is None and type(None) in typing.get_args(kind)):
        if isinstance(value, str) and value in members:
            return None
        shown = ", ".join(members[:_SHOWN]) + (", ..." if len(members) > _SHOWN else "")
        return f"must be one of {shown}, got {value!r}{did_you_mean(str(value), members)}"
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        adapter.validate_python(value)
    except PydanticUserError:
        return None  # A type that pydantic knows nothing of; the class itself has to check it.
    except ValidationError:
        return f"must be {_describe(kind)}, got {value!r}"
    return None


def _enumeration(kind: Any) -> list[str]:
    for option in (kind, *typing.get_args(kind)):
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return [str(member.value) for member in option]
    return []


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        return str(kind.__metadata__[0].description)
    if typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Literal):
        return " or ".join(_describe(option) for option in typing.get_args(kind))
    kind = typing.get_origin(kind) or kind
    return "null" if kind is type(None) else _PLAIN.get(kind, getattr(kind, "__name__", str(kind)))
