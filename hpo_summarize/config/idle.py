"""Settings that another setting of the same recipe puts out of action."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpo_summarize.config.fields import is_number
from hpo_summarize.config.parameters import (
    default_values,
    implied_condition,
    lets_act,
)
from hpo_summarize.config.settings import fixed_value, possible_values
from hpo_summarize.errors import Problem

ACTS_ONLY = {
    "do_sample": "it acts only while tokens are sampled, and this recipe has do_sample nowhere "
    "true; search do_sample, set generation.do_sample=true, or drop it",
    "num_beams": "it acts only in beam search, and this recipe has num_beams nowhere above 1; "
    "search num_beams, set generation.num_beams, or drop it",
    "scheduler_type": "the schedule here has no warm-up, so it cannot act; set "
    "training.scheduler_type=constant_with_warmup or another one that has, or drop it",
}


def why_idle(name: str, parts: Mapping[str, Any]) -> str | None:
    """Says under which setting of this recipe `name` can never act, or None."""
    other = implied_condition(name)
    values = possible_values(other, parts) if other else []
    if other is None or not values or any(lets_act(name, value) for value in values):
        return None
    return ACTS_ONLY[other]


def idle_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Fixed values that never act; one that says no more than the default does is let through.

    Where the recipe leaves `do_sample` or `num_beams` to the checkpoint, that decides.
    """
    given = {**parts.get("training", {}), **parts.get("generation", {}), **parts.get("space", {})}
    for section in ("training", "generation"):
        for name, value in parts.get(section, {}).items():
            if value is None or value == default_values().get(name):
                continue
            other = implied_condition(name)
            if section == "generation" and other not in given:
                continue
            if isinstance(name, str) and (reason := why_idle(name, parts)):
                yield Problem(f"{section}.{name}", f"{reason} (value {value!r})")
    yield from length_problems(parts)
    yield from _loftq_problems(parts)


def length_problems(parts: Mapping[str, Any], decided: int | None = None) -> Iterator[Problem]:
    """transformers only warns of a summary that must be longer than it may be.

    Args:
        parts: The sections of a recipe.
        decided: The `max_new_tokens` of a recipe that gives none. A least length must be below it:
            with the same length every summary would be cut.
    """
    limits = [v for v in possible_values("max_new_tokens", parts) if is_number(v)]
    most, below, origin = min(limits, default=None), 0, ""
    if most is None:
        most, below, origin = decided, 1, ", as the training summaries decide"
    for name, extra in (("min_new_tokens", 0), ("min_length", 1)):  # The start token counts there.
        highest = max((v for v in possible_values(name, parts) if is_number(v)), default=None)
        if most is not None and highest is not None and highest > most + extra - below:
            section = "space" if name in parts.get("space", {}) else "generation"
            yield Problem(
                f"{section}.{name}",
                f"must be at most {most + extra - below} where max_new_tokens is {most}{origin}, "
                f"got {highest}; lower it, or set a higher max_new_tokens",
            )


def _loftq_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    config, ways = fixed_value("loftq_config", parts), possible_values("init_lora_weights", parts)
    if config and ways and "loftq" not in ways:
        yield Problem(
            "lora.loftq_config",
            f"this recipe has init_lora_weights nowhere loftq, which alone reads it (value "
            f"{config!r}); set lora.init_lora_weights=loftq, or drop it",
        )
