"""Which values a name can take in a recipe, fixed or searched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hpo_summarize.config.parameters import LORA_KEYS, default_values, owner_of
from hpo_summarize.config.schema import GenerationSection, LoraSection, OpenSection, TrainingSection

SECTIONS: dict[str, type[OpenSection]] = {
    "training": TrainingSection,
    "generation": GenerationSection,
    "lora": LoraSection,
}


def fixed_value(name: str, parts: Mapping[str, Any]) -> Any:
    """The value that a recipe gives to a name outside of its space; None if it gives none."""
    given = parts.get(owner_of(name) or "")
    return given.get(LORA_KEYS.get(name, name)) if isinstance(given, Mapping) else None


def possible_values(name: str, parts: Mapping[str, Any]) -> list[Any]:
    """The values that a name can take in a run: those of its parameter, or the fixed one.

    A range is given by its two ends. Of a malformed parameter nothing is known: an empty list.
    """
    space = parts.get("space", {})
    if name not in space:
        value = fixed_value(name, parts)
        return [_default(name) if value is None else value]
    if not isinstance(space[name], Mapping):
        return []
    if space[name].get("type") == "categorical":
        choices = space[name].get("choices")
        return choices if isinstance(choices, list) else []
    ends = [space[name].get("low"), space[name].get("high")]
    return ends if all(isinstance(end, int | float) for end in ends) else []


def is_among(value: Any, wanted: Iterable[Any]) -> bool:
    """Whether a condition that asks for one of `wanted` holds for `value`.

    `1 == True` in Python, and a condition on a number is not one on a truth value.
    """
    return any(isinstance(value, bool) == isinstance(w, bool) and value == w for w in wanted)


def _default(name: str) -> Any:
    section = SECTIONS.get(owner_of(name) or "")
    key = LORA_KEYS.get(name, name)
    if section is not None and key in section.model_fields:
        return section.model_fields[key].default
    return default_values().get(name)
