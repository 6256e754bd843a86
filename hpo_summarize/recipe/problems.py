"""Validation errors of pydantic in the words of a recipe's reader."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo_summarize.errors import Problem, did_you_mean
from hpo_summarize.recipe import sections

_PARAMETER_TYPES = {
    "float": sections.FloatParameter,
    "int": sections.IntParameter,
    "categorical": sections.CategoricalParameter,
}

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys to values",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping of keys to values",
    "string_type": "text (put it in quotes if it looks like a number)",
}


def explain(error: ValidationError, content: Mapping[str, Any]) -> list[Problem]:
    """One `Problem` for each key that pydantic refused."""
    found: dict[str, list[str]] = {}
    for item in error.errors(include_url=False):
        path = _path(item["loc"], content)
        messages = found.setdefault(".".join(path), [])
        message = _message(item, path, content)
        if message not in messages:
            messages.append(message)
    return [Problem(key or "recipe", "; or ".join(messages)) for key, messages in found.items()]


def _path(loc: tuple[int | str, ...], content: Mapping[str, Any]) -> list[str]:
    """The keys of the recipe in a pydantic location, without the tags of its unions."""
    path: list[str] = []
    value: Any = content
    for index, part in enumerate(loc):
        is_tag = index == 2 and loc[0] == "space" and part in _PARAMETER_TYPES
        if is_tag and not (isinstance(value, Mapping) and part in value):
            continue
        if isinstance(value, Mapping) and part not in value and index < len(loc) - 1:
            continue
        if not isinstance(value, Mapping | list):
            continue  # A member of a union such as `str | list[str]`.
        path.append(str(part))
        value = _get(value, part)
    return path


def _get(value: Any, part: int | str) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _message(item: Any, path: list[str], content: Mapping[str, Any]) -> str:
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return "this key is required and is not given"
    if kind == "extra_forbidden":
        return f"unknown key (value {value!r}){did_you_mean(path[-1], _known_keys(path, content))}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = value.get("type") if isinstance(value, Mapping) else value
        return f"type must be float, int or categorical, got {given!r}"
    if kind in _EXPECTED:
        return f"must be {_EXPECTED[kind]}, got {value!r}"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "literal_error":
        known = [word.strip("'") for word in item["ctx"]["expected"].replace(" or ", ", ").split(", ")]
        return f"must be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}"
    if kind == "string_pattern_mismatch":
        return f"only letters, digits, '.', '_' and '-' (at most 64) may stand here, got {value!r}"
    return f"{item['msg'].replace('Input should', 'must')}, got {value!r}"


def _known_keys(path: list[str], content: Mapping[str, Any]) -> list[str]:
    if len(path) == 3 and path[0] == "space":
        kind = content["space"][path[1]].get("type")
        return list(_PARAMETER_TYPES[kind].model_fields)
    model: type[BaseModel] = sections.Recipe
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation
        options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
