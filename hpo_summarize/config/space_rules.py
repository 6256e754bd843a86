"""Rules for a search space and its conditions, checked before a model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpo_summarize.config.fields import (
    LARGEST,
    is_number,
    model_type_problem,
    type_problem,
    why_never_decoded,
    why_not_sampled,
)
from hpo_summarize.config.idle import why_idle
from hpo_summarize.config.parameters import (
    MODEL_NAMES,
    ONE_NAME_ONLY,
    implied_condition,
    known_names,
    lets_act,
    limit_problem,
    owner_of,
    why_not_searchable,
)
from hpo_summarize.config.schema import CategoricalParameter, IntParameter, Parameter
from hpo_summarize.config.settings import fixed_value, is_among, possible_values
from hpo_summarize.errors import Problem, did_you_mean

_TOLERANCE = 1e-8  # Optuna's own for steps.


def outside(parameter: Parameter, value: Any) -> str | None:
    """Says why a value is none that a trial can have; None if it is one."""
    if isinstance(parameter, CategoricalParameter):
        if is_among(value, parameter.choices):
            return None
        return f"must be one of {parameter.choices!r}, got {value!r}"
    whole = isinstance(parameter, IntParameter)
    if not is_number(value) or (whole and not isinstance(value, int)):
        return f"must be a {'whole ' if whole else ''}number, got {value!r}"
    low, high, step = parameter.low, parameter.high, parameter.step
    if not low <= value <= high:
        return f"must lie between {low:g} and {high:g}, got {value!r}"
    if step is not None and abs((steps := (value - low) / step) - round(steps)) > _TOLERANCE:
        return f"must be {low:g} plus whole steps of {step:g}, got {value!r}"
    return None


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
    if name in ONE_NAME_ONLY:
        return f"this field is called '{ONE_NAME_ONLY[name]}' here; use that name"
    return why_not_searchable(name, _never_searched) or _never_searched(name)


def _never_searched(name: str) -> str | None:
    return why_not_sampled(name) or why_never_decoded(name)


def _cannot_act(name: str, parts: Mapping[str, Any]) -> str | None:
    if owner_of(name) == "lora" and not isinstance(parts.get("lora"), Mapping):
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
    kind = known_names()[name][1]
    if parameter.get("type") == "categorical":
        values = parameter["choices"]
    else:
        values = [parameter["low"], parameter["high"]]
    whole = type_problem(0.5, kind) and not type_problem(1, kind)
    if parameter.get("type") == "float" and whole:
        return "it takes whole numbers only; use type: int"
    for value in values:
        if reason := type_problem(value, kind) or limit_problem(name, value):
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
    known = [*space, *FACTS, *known_names()]
    if other not in known:
        rule = "a condition names another parameter, a fixed value or a fact of the model"
        return f"{rule} ({', '.join(FACTS)}), got {other!r}{did_you_mean(other, known)}"
    if other == "model_type":
        trusts = (parts.get("model") or {}).get("trust_remote_code") is True
        return None if trusts else next(filter(None, map(model_type_problem, values)), None)
    if other in FACTS or (other in MODEL_NAMES and other not in space):
        return None
    if owner_of(other) == "lora" and "lora" not in parts:
        return "this recipe trains without LoRA, so it never holds; add a section lora or drop it"
    if other == implied_condition(name) and not any(lets_act(name, v) for v in values):
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
    implied = implied_condition(name)
    return parents | {implied} if implied else parents
