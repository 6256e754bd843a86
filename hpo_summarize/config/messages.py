"""Validation errors of pydantic in the words of a recipe's reader."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from hpo_summarize.config.schema import CategoricalParameter, FloatParameter, IntParameter, Recipe
from hpo_summarize.errors import Problem, did_you_mean

PARAMETER_TYPES: dict[str, type[BaseModel]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "categorical": CategoricalParameter,
}

_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping of keys to values",
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "list_type": "a list",
    "model_attributes_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "string_type": "text (put it in quotes if it looks like a number)",
}


def explain(error: ValidationError, content: Mapping[str, Any]) -> list[Problem]:
    """One `Problem` for each key that pydantic refused."""
    found: dict[tuple[str, ...], list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_path(item, content), []).append(item)
    return [
        Problem(".".join(path) or "recipe", _messages(items, path, content))
        for path, items in found.items()
    ]


def _path(item: Any, content: Mapping[str, Any]) -> tuple[str, ...]:
    """The keys of the recipe in a pydantic location, without the tags of its unions."""
    loc: tuple[int | str, ...] = item["loc"]
    if loc and loc[0] == "space":
        loc = loc[:2] + loc[3:]  # The third part is the type of the parameter.
    path: list[str] = []
    value: Any = content
    for part in loc:
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        elif item["type"] != "missing" or part != loc[-1]:
            continue  # A member of a union such as `str | list[str]`.
        path.append(str(part))
    return tuple(path)


def _messages(items: list[Any], path: tuple[str, ...], content: Mapping[str, Any]) -> str:
    """All that is wrong at one place; of a union there is one error for each of its members."""
    expected = [_EXPECTED[item["type"]] for item in items if item["type"] in _EXPECTED]
    others = [_message(item, path, content) for item in items if item["type"] not in _EXPECTED]
    if expected:
        kinds = " or ".join(dict.fromkeys(expected))
        others.insert(0, f"must be {kinds}, got {items[0]['input']!r}")
    return "; and ".join(dict.fromkeys(others))


def _message(item: Any, path: tuple[str, ...], content: Mapping[str, Any]) -> str:
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return "this key is required and is not given"
    if kind == "extra_forbidden":
        nearest = did_you_mean(path[-1], _known_keys(path, content), "drop it")
        return f"unknown key (value {value!r}){nearest}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = value.get("type") if isinstance(value, Mapping) else value
        return f"type must be float, int or categorical, got {given!r}"
    if kind in ("too_short", "string_too_short"):
        return f"must not be empty, got {value!r}"
    if kind == "invalid_key":
        return f"keys must be text, got {value!r}; put it in quotes"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "literal_error":
        known = [
            word.strip("'") for word in item["ctx"]["expected"].replace(" or ", ", ").split(", ")
        ]
        return f"must be one of {', '.join(known)}, got {value!r}{did_you_mean(str(value), known)}"
    if kind == "string_pattern_mismatch":
        return f"only letters, digits, '.', '_' and '-' (at most 64) may stand here, got {value!r}"
    return f"{item['msg'].replace('Input should', 'must')}, got {value!r}"


def _known_keys(path: tuple[str, ...], content: Mapping[str, Any]) -> list[str]:
    if len(path) == 3 and path[0] == "space":
        kind = content["space"][path[1]].get("type")
        return list(PARAMETER_TYPES[kind].model_fields)
    model: type[BaseModel] = Recipe
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation
        options = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)
