"""What can be said of a search space before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpo_summarize import names
from hpo_summarize.errors import Problem
from hpo_summarize.recipe.condition_checks import condition_problems, cycles
from hpo_summarize.recipe.generation_checks import why_never_decoded
from hpo_summarize.recipe.idle_checks import why_idle
from hpo_summarize.recipe.settings import fixed_value
from hpo_summarize.recipe.training_checks import why_not_sampled
from hpo_summarize.recipe.values import LARGEST, is_number, type_problem


def space_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Every parameter of `parts["space"]` that cannot be sampled, or could not act."""
    given = parts.get("space", {})
    space = {k: v for k, v in given.items() if isinstance(k, str) and isinstance(v, Mapping)}
    for name, parameter in space.items():
        where = f"space.{name}"
        if reason := _wrong_name(name):
            yield Problem(where, reason)
            continue
        if reason := _cannot_act(name, parts):
            yield Problem(where, reason)
        if _is_well_formed(parameter):
            reason = _wrong_range(parameter) or _wrong_values(name, parameter)
            if reason := reason or _baseline_outside(name, parameter, parts):
                yield Problem(where, reason)
        yield from condition_problems(name, parameter, parts, space)
    yield from cycles(space)


def _wrong_name(name: str) -> str | None:
    if name in names.ONE_NAME_ONLY:
        return f"this field is called '{names.ONE_NAME_ONLY[name]}' here; use that name"
    return names.why_not_searchable(name, _never_searched) or _never_searched(name)


def _never_searched(name: str) -> str | None:
    return why_not_sampled(name) or why_never_decoded(name)


def _cannot_act(name: str, parts: Mapping[str, Any]) -> str | None:
    if names.owner_of(name) == "lora" and not isinstance(parts.get("lora"), Mapping):
        return "this recipe trains without LoRA, so it cannot act; add a section lora or drop it"
    return why_idle(name, parts)


def _is_well_formed(parameter: Mapping[str, Any]) -> bool:
    """Whether its bounds or choices can be compared; otherwise the section reports it."""
    if parameter.get("type") == "categorical":
        choices = parameter.get("choices")
        return isinstance(choices, list) and not any(isinstance(c, list | dict) for c in choices)
    numbers = [parameter.get("low"), parameter.get("high")]
    numbers += [parameter["step"]] if parameter.get("step") is not None else []
    return all(is_number(n) and abs(n) < LARGEST for n in numbers) and parameter.get("step") != 0


def _wrong_range(parameter: Mapping[str, Any]) -> str | None:
    if parameter.get("type") == "categorical":
        return None
    low, high, step = parameter["low"], parameter["high"], parameter.get("step")
    if not low < high:
        return f"low must be below high, got low {low} and high {high}"
    if parameter.get("log") is True and low <= 0:
        return f"a log range starts above 0, got low {low}; raise low or drop log"
    if parameter.get("log") is True and step not in (None, 1):
        return f"a log range takes no step, got step {step}; drop log or step"
    if step is not None and not _is_whole((high - low) / step):
        # Optuna would lower `high` to the last step, and say so in a warning.
        return (
            f"a whole number of steps must lead from low to high, got low {low}, high {high} and "
            f"step {step}; change high or step"
        )
    return None


def _is_whole(number: float) -> bool:
    return abs(number - round(number)) < 1e-8  # Optuna's own tolerance for steps.


def _wrong_values(name: str, parameter: Mapping[str, Any]) -> str | None:
    kind = names.known_names()[name][1]
    if parameter.get("type") == "categorical":
        values = parameter["choices"]
    else:
        values = [parameter["low"], parameter["high"]]
    whole = type_problem(0.5, kind) and not type_problem(1, kind)
    if parameter.get("type") == "float" and whole:
        return "it takes whole numbers only; use type: int"
    for value in values:
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
        inside, span = value in parameter["choices"], str(parameter["choices"])
    elif is_number(value):
        low, high = parameter["low"], parameter["high"]
        step = parameter.get("step") or (1 if parameter.get("type") == "int" else None)
        inside = low <= value <= high and (step is None or _is_whole((value - low) / step))
        span = f"{low} to {high}" + (f" in steps of {step}" if step else "")
    else:
        return None  # Its own section reports it.
    if inside:
        return None
    return (
        f"trial 0 runs the fixed value {value!r} of the recipe, which is outside of {span}; "
        "widen the space or change the fixed value"
    )
