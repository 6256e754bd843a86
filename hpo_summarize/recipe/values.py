"""Does a value have the type of the Hugging Face field that it is meant for?"""

from __future__ import annotations

import enum
import typing
from typing import Any

from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError

from hpo_summarize.errors import did_you_mean

_SHOWN = 12  # Members of an enumeration that a message lists.
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


def type_problem(value: Any, kind: Any) -> str | None:
    """Says why `value` cannot be a value of the type `kind`; None if it can.

    Nothing is converted: the text "1" is no number, and true is no 1. A whole number is a number.
    Where a field takes a member of an enumeration by its text, other texts are refused.
    """
    members = _enumeration(kind)
    if members and isinstance(value, str):
        if value in members:
            return None
        shown = ", ".join(members[:_SHOWN]) + (", ..." if len(members) > _SHOWN else "")
        return f"must be one of {shown}, got {value!r}{did_you_mean(value, members)}"
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        adapter.validate_python(value)
    except PydanticSchemaGenerationError:
        return None
    except ValidationError:
        return f"must be {_describe(kind)}, got {value!r}"
    return None


def _enumeration(kind: Any) -> list[str]:
    for option in (kind, *typing.get_args(kind)):
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return [str(member.value) for member in option]
    return []


def _describe(kind: Any) -> str:
    options = typing.get_args(kind) if typing.get_origin(kind) is not list else ()
    names = [_PLAIN.get(o, getattr(o, "__name__", str(o))) for o in (options or (kind,))]
    return " or ".join("null" if name == "NoneType" else str(name) for name in names)
