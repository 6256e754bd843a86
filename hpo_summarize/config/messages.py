"""Wrong values, and what pydantic refuses, as problems of a recipe."""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from hpo_summarize.config.schema import Recipe
from hpo_summarize.config.space import LARGEST, PARAMETER_TYPES
from hpo_summarize.errors import Problem, did_you_mean

DEEPEST = 20  # Levels of mappings and lists in a recipe.
TOO_DEEP = f"is nested more than {DEEPEST} levels deep; flatten it"
_STAND_INS = {"model": {"name": "-"}, "output_dir": "-"}
_ROUNDS = 10  # In which keys are taken out; each one can only uncover keys that depend on it.
_LONGEST = 300  # Characters of a reason: some types have dozens of values.
_TEXT = "text (put it in quotes if it looks like a number)"
_MAPPING = "a mapping of keys to values"
_EXPECTED = {"string_type": _TEXT, "model_type": _MAPPING, "dict_type": _MAPPING}
_EXPECTED["model_attributes_type"] = _MAPPING


def explain(error: ValidationError, content: Any, model: type[BaseModel]) -> dict[str, str]:
    """One message for each key that pydantic refused; of a union there are several errors.

    Args:
        error: What it raised.
        content: What it was given.
        model: The class that refused it.
    """
    found: dict[tuple[str, ...], list[Any]] = {}
    for item in error.errors(include_url=False):
        found.setdefault(_path(item, content), []).append(item)
    return {
        ".".join(path) or "recipe": _message(items, path, content, model)
        for path, items in found.items()
    }


def value_problem(value: Any, kind: Any) -> str | None:
    """Says why `value` cannot be a value of the type `kind`; None if it can.

    Nothing is converted: the text "1" is no number, and true is no 1. A whole number is a number.
    """
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        adapter.validate_python(value)
    except PydanticUserError:
        return None  # A type that pydantic knows nothing of; the class itself has to check it.
    except ValidationError as error:
        items = [{**item, "input": value} for item in error.errors(include_url=False)]
        return _expected(items)
    return None


def model_type_problem(value: Any) -> str | None:
    """Says why `value` cannot be a model type of the transformers library; None if it can."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if isinstance(value, str) and value in CONFIG_MAPPING_NAMES:
        return None
    nearest = did_you_mean(str(value), CONFIG_MAPPING_NAMES)
    return f"must be a model type of transformers, such as bart or t5, got {value!r}{nearest}"


def unusable_values(value: Any, key: str = "", depth: int = 0) -> Iterator[Problem]:
    """Every value anywhere in `value` that no setting can take, whatever its type."""
    if isinstance(value, Mapping | list):
        if depth > DEEPEST:
            yield Problem(key, TOO_DEEP)
            return
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from unusable_values(inner, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            yield Problem(key, f"has a character that no file can have, got {value!r}; remove it")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield Problem(key, f"must be a finite number, got {value!r}")
    elif isinstance(value, int):
        if abs(value) > LARGEST:
            yield Problem(key, f"must be below 2 to the power of 63, got {value!r}")
    elif value is not None:
        kind = type(value).__name__
        yield Problem(key, f"must not be a {kind}, got {value!r}; put text that looks so in quotes")


def remaining(content: Mapping[str, Any], refused: Iterable[str]) -> Recipe | None:
    """What is left of a recipe without refused keys, so that rules can be applied to it."""
    rest: Any = {key: value for key, value in content.items() if isinstance(key, str)}
    for _ in range(_ROUNDS):
        for key in refused:
            taken = _take_out(rest, key.split("."))
            rest = rest if taken is None else taken
        try:
            return Recipe.model_validate({**_STAND_INS, **rest})
        except ValidationError as error:
            refused = explain(error, {**_STAND_INS, **rest}, Recipe)
    return None


def _take_out(value: Any, path: Sequence[str]) -> Any:
    """A mapping without a key; None where only the key that holds it can be taken out."""
    if not isinstance(value, Mapping) or not path:
        return None
    found = [key for key in value if str(key) == path[0]]
    if not found:
        return value if path[1:] else None  # Taken out before; or a key that is missing.
    inner = _take_out(value[found[0]], path[1:])
    rest = {key: other for key, other in value.items() if key is not found[0]}
    return rest if inner is None else {**rest, found[0]: inner}


def _path(item: Any, content: Any) -> tuple[str, ...]:
    """The keys of the recipe in a pydantic location, without the tags of its unions."""
    loc: tuple[int | str, ...] = item["loc"]
    if loc and loc[0] == "space":
        loc = loc[:2] + loc[3:]  # The third part is the type of the parameter.
    path: list[str] = []
    for part in loc:
        if isinstance(content, Mapping) and part in content:
            content = content[part]
        elif isinstance(content, list) and isinstance(part, int) and part < len(content):
            content = content[part]
        elif item["type"] != "missing" or part != loc[-1]:
            continue  # A member of a union such as `str | list[str]`.
        path.append(str(part))
    return tuple(path)


def _message(
    items: Sequence[Any], path: tuple[str, ...], content: Any, model: type[BaseModel]
) -> str:
    kind, value = items[0]["type"], items[0]["input"]
    for item in items:
        if item["type"] == "value_error":
            return str(item["ctx"]["error"])
    if kind == "missing":
        return "this key is required and is not given"
    if kind == "extra_forbidden":
        nearest = did_you_mean(path[-1], _known_keys(path, content, model), "drop it")
        return f"unknown key (value {value!r}){nearest}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = value.get("type") if isinstance(value, Mapping) else value
        return f"type must be float, int or categorical, got {given!r}"
    if kind == "invalid_key":
        return f"keys must be text, got {value!r}; put it in quotes"
    return _expected(items)


def _expected(items: Sequence[Any]) -> str:
    """What pydantic expected: `must be a valid integer or 'all', got 'some'`."""
    reasons, values = [], []
    for item in items:
        reason = re.sub(r"^(Input|\w+) should ", "", item["msg"]).removeprefix("be ")
        reasons.append(_EXPECTED.get(item["type"], reason))
        if item["type"] == "literal_error":
            values += re.findall(r"'([^']*)'", item["ctx"]["expected"])
    value = items[0]["input"]
    rule = " or ".join(dict.fromkeys(reasons))
    verb = "" if rule.startswith(("have ", "match ")) else "be "
    rule = rule if len(rule) < _LONGEST else f"{rule[:_LONGEST]} ..."
    return f"must {verb}{rule}, got {value!r}{did_you_mean(str(value), values)}"


def _known_keys(path: tuple[str, ...], content: Any, model: type[BaseModel]) -> list[str]:
    if len(path) == 3 and path[0] == "space":
        return list(PARAMETER_TYPES[content["space"][path[1]]["type"]].model_fields)
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation
        options = typing.get_args(annotation) or (annotation,)
        model = next(o for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    return list(model.model_fields)
