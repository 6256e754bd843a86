"""Which values a parameter of the search space can have."""

from __future__ import annotations

from typing import Any

from hpo_summarize.recipe.sections import CategoricalParameter, IntParameter, Parameter
from hpo_summarize.recipe.settings import is_among
from hpo_summarize.recipe.values import is_number

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
