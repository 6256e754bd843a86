"""What can be said of a search space before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpo_summarize import names
from hpo_summarize.errors import Problem, did_you_mean
from hpo_summarize.recipe.values import type_problem

# What a condition may name beside the parameters of the space and fixed values.
FACTS = ("model_type", "task")


def space_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Every parameter of `parts["space"]` that cannot be sampled, or could not act."""
    space = {k: v for k, v in parts.get("space", {}).items() if isinstance(v, Mapping)}
    for name, parameter in space.items():
        where = f"space.{name}"
        if reason := names.why_not_searchable(name):
            yield Problem(where, reason)
            continue
        if reason := _cannot_act(name, parts, space):
            yield Problem(where, reason)
        if reason := _wrong_range(parameter) or _wrong_values(name, parameter):
            yield Problem(where, reason)
        elif reason := _baseline_outside(name, parameter, parts):
            yield Problem(where, reason)
        yield from _condition_problems(name, parameter, parts, space)
    yield from _cycles(space)


def fixed_value(name: str, parts: Mapping[str, Any]) -> Any:
    """The value that a recipe gives to a name outside of its space; None if it gives none."""
    owner = names.owner_of(name)
    if owner == "lora":
        return (parts.get("lora") or {}).get(name.removeprefix("lora_"))
    return parts.get(owner, {}).get(name) if owner in ("training", "generation") else None


def possible_values(name: str, parts: Mapping[str, Any], default: Any) -> list[Any]:
    """The values that a name can take in a run: those of its parameter, or the fixed one.

    A range is given by its two ends.
    """
    parameter = parts.get("space", {}).get(name)
    if not isinstance(parameter, Mapping):
        value = fixed_value(name, parts)
        return [default if value is None else value]
    if parameter.get("type") == "categorical":
        return list(parameter.get("choices") or [])
    return [parameter.get("low"), parameter.get("high")]


def _cannot_act(name: str, parts: Mapping[str, Any], space: Mapping[str, Any]) -> str | None:
    if names.owner_of(name) == "lora" and not isinstance(parts.get("lora"), Mapping):
        return "this recipe trains without LoRA, so it cannot act; add a section lora or drop it"
    if name in names.SAMPLING_ONLY and True not in possible_values("do_sample", parts, False):
        return (
            "it acts only while tokens are sampled, and do_sample is never true here; "
            "search do_sample, set generation.do_sample=true, or drop it"
        )
    beams = possible_values("num_beams", parts, 1)
    if name in names.BEAMS_ONLY and not any(isinstance(n, int) and n > 1 for n in beams):
        return (
            "it acts only in beam search, and num_beams is never above 1 here; "
            "search num_beams, set generation.num_beams, or drop it"
        )
    return None


def _wrong_range(parameter: Mapping[str, Any]) -> str | None:
    low, high, step = (parameter.get(key) for key in ("low", "high", "step"))
    if not all(isinstance(bound, int | float) for bound in (low, high)):
        return None  # The type of each is checked where the section is read.
    if not low < high:
        return f"low must be below high, got low {low:g} and high {high:g}"
    if parameter.get("log") is True and low <= 0:
        return f"a log range starts above 0, got low {low:g}; raise low or drop log"
    if parameter.get("log") is True and step not in (None, 1):
        return f"a log range takes no step, got step {step!r}; drop log or step"
    return None


def _wrong_values(name: str, parameter: Mapping[str, Any]) -> str | None:
    kind = names.known_names()[name][1]
    if parameter.get("type") == "categorical":
        values = parameter.get("choices")
    else:
        values = [parameter.get("low"), parameter.get("high")]
    if not isinstance(values, list):
        return None
    whole = type_problem(0.5, kind) and not type_problem(1, kind)
    if parameter.get("type") == "float" and whole:
        return "it takes whole numbers only; use type: int"
    for value in values:
        if value is None and parameter.get("type") != "categorical":
            return None  # A missing bound is reported where the section is read.
        if reason := type_problem(value, kind) or names.limit_problem(name, value):
            return reason
    return None


def _baseline_outside(
    name: str, parameter: Mapping[str, Any], parts: Mapping[str, Any]
) -> str | None:
    value = fixed_value(name, parts)
    if value is None:
        return None
    if parameter.get("type") == "categorical":
        choices = parameter.get("choices")
        inside = not isinstance(choices, list) or value in choices
        span = str(choices)
    else:
        low, high = parameter.get("low"), parameter.get("high")
        if not all(isinstance(v, int | float) for v in (low, high, value)):
            return None
        inside = low <= value <= high
        span = f"{low:g} to {high:g}"
    if inside:
        return None
    return (
        f"trial 0 runs the fixed value {value!r} of the recipe, which is outside of {span}; "
        "widen the space or change the fixed value"
    )


def _condition_problems(
    name: str, parameter: Mapping[str, Any], parts: Mapping[str, Any], space: Mapping[str, Any]
) -> Iterator[Problem]:
    conditions = parameter.get("when")
    if not isinstance(conditions, Mapping):
        return
    for other, wanted in conditions.items():
        where = f"space.{name}.when.{other}"
        known = [*space, *FACTS, *names.known_names()]
        if other == name or other not in known:
            nearest = did_you_mean(str(other), known)
            message = "a condition names another parameter, a fixed value or a fact of the model"
            yield Problem(where, f"{message} ({', '.join(FACTS)}), got {other!r}{nearest}")
        elif other in space and space[other].get("type") == "categorical":
            choices = space[other].get("choices")
            wanted = wanted if isinstance(wanted, list) else [wanted]
            if isinstance(choices, list) and not any(value in choices for value in wanted):
                yield Problem(where, f"{wanted!r} is never among the choices {choices!r}")


def _cycles(space: Mapping[str, Any]) -> Iterator[Problem]:
    waits = {
        name: {other for other in (parameter.get("when") or {}) if other in space}
        for name, parameter in space.items()
        if isinstance(parameter.get("when", {}), Mapping)
    }
    while free := [name for name, others in waits.items() if not others & waits.keys()]:
        for name in free:
            del waits[name]
    if waits:
        ring = ", ".join(sorted(waits))
        yield Problem("space", f"the conditions of {ring} wait for one another; break the ring")
