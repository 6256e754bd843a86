"""What can be said of the conditions in a search space before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpo_summarize import names
from hpo_summarize.errors import Problem, did_you_mean
from hpo_summarize.recipe.settings import is_among, possible_values
from hpo_summarize.recipe.values import is_number, model_type_problem

# What a condition may name beside the parameters of the space and fixed values.
FACTS = ("model_type", "task")


def condition_problems(
    name: str, parameter: Mapping[str, Any], parts: Mapping[str, Any], space: Mapping[str, Any]
) -> Iterator[Problem]:
    """Every condition of the parameter `name` that names nothing, or that never holds."""
    conditions = parameter.get("when")
    if not isinstance(conditions, Mapping):
        return
    for other, wanted in conditions.items():
        values = wanted if isinstance(wanted, list) else [wanted]
        nested = any(isinstance(value, list | Mapping) for value in values)
        if not isinstance(other, str) or nested or not values:
            continue  # The section itself reports it.
        if reason := _wrong_condition(name, other, values, parts, space):
            yield Problem(f"space.{name}.when.{other}", reason)


def _wrong_condition(
    name: str, other: str, values: list[Any], parts: Mapping[str, Any], space: Mapping[str, Any]
) -> str | None:
    known = [*space, *FACTS, *names.known_names()]
    if other not in known:
        rule = "a condition names another parameter, a fixed value or a fact of the model"
        return f"{rule} ({', '.join(FACTS)}), got {other!r}{did_you_mean(other, known)}"
    if other == "model_type":
        trusts = (parts.get("model") or {}).get("trust_remote_code") is True
        return None if trusts else next(filter(None, map(model_type_problem, values)), None)
    if other in FACTS or (other in names.MODEL_NAMES and other not in space):
        return None
    if names.owner_of(other) == "lora" and "lora" not in parts:
        return "this recipe trains without LoRA, so it never holds; add a section lora or drop it"
    if other == names.implied_condition(name) and not any(names.lets_act(name, v) for v in values):
        return f"'{name}' has no effect while {other} is {values!r}; drop the condition"
    return _never_holds(other, values, parts, space)


def _never_holds(
    other: str, values: list[Any], parts: Mapping[str, Any], space: Mapping[str, Any]
) -> str | None:
    possible = possible_values(other, parts)
    if not possible:
        return None  # The parameter is malformed, and its section reports it.
    if other in space and space[other].get("type") != "categorical":
        low, high = possible
        numbers = [value for value in values if is_number(value)]
        holds, span = any(low <= v <= high for v in numbers), f"lies between {low} and {high}"
    else:
        holds = any(is_among(value, values) for value in possible)
        span = f"is one of {possible!r}" if other in space else f"is {possible[0]!r}"
    return None if holds else f"never holds: {other} {span}, got {values!r}; change one of the two"


def cycles(space: Mapping[str, Any]) -> Iterator[Problem]:
    """Parameters that wait for one another, by their own conditions or by implied ones."""
    waits = {name: _parents(name, parameter) & space.keys() for name, parameter in space.items()}
    while free := [name for name, others in waits.items() if not others & waits.keys()]:
        for name in free:
            del waits[name]
    if waits:
        ring = ", ".join(sorted(waits))
        yield Problem("space", f"the conditions of {ring} wait for one another; break the ring")


def _parents(name: str, parameter: Mapping[str, Any]) -> set[str]:
    conditions = parameter.get("when")
    parents = {str(other) for other in conditions} if isinstance(conditions, Mapping) else set()
    implied = names.implied_condition(name)
    return parents | {implied} if implied else parents
