"""What must hold between the keys of a recipe, and in the sections that Hugging Face defines."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from hpo_summarize import names
from hpo_summarize.errors import Problem, did_you_mean
from hpo_summarize.recipe import sections
from hpo_summarize.recipe.registry import PRUNERS, SAMPLERS, optuna_class
from hpo_summarize.recipe.space_checks import space_problems
from hpo_summarize.recipe.values import type_problem

# Keys that the recipe sets somewhere else, with the place.
_ELSEWHERE = {
    "output_dir": "output_dir, at the top of the recipe",
    "generation_config": "the section generation",
    "generation_max_length": "generation.max_new_tokens",
    "generation_num_beams": "generation.num_beams",
    "predict_with_generate": "nowhere; summaries are always generated",
}
_CONFLICTS = (
    ("batch_size", "gradient_accumulation_steps", "batch_size is the whole optimizer step"),
    ("warmup_ratio", "warmup_steps", "both say how long the warm-up is"),
)


def find_problems(content: Mapping[str, Any]) -> list[Problem]:
    """Every rule between keys that `content` breaks; malformed sections are passed over."""
    parts = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    return [
        *_open_section_problems(parts),
        *_optuna_problems(parts),
        *_conflicts(parts),
        *space_problems(parts),
    ]


def _open_section_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    raw_words = {field: word for word, field in names.TRAINING_WORDS.items()}
    raw_words |= {"lora_alpha": "alpha", "lora_dropout": "dropout"}
    for section, model, fields in (
        ("training", sections.TrainingSection, names.training_fields),
        ("generation", sections.GenerationSection, names.generation_fields),
        ("lora", sections.LoraSection, names.lora_fields),
    ):
        given = parts.get(section, {})
        for key in [key for key in given if key not in model.model_fields]:
            where = f"{section}.{key}"
            if key in raw_words:
                yield Problem(where, f"this field is called '{raw_words[key]}' here; use that name")
            elif key in _ELSEWHERE:
                yield Problem(where, f"this is set in another place: {_ELSEWHERE[key]}")
            elif key not in fields():
                nearest = did_you_mean(str(key), [*model.model_fields, *fields()])
                yield Problem(where, f"unknown key (value {given[key]!r}){nearest}")
            elif message := type_problem(given[key], fields()[key]):
                yield Problem(where, message)
        for key, value in given.items():
            name = f"lora_{key}" if section == "lora" else key
            if key in model.model_fields and name in names.LIMITS:
                continue  # The limits of these stand in the section itself.
            if message := names.limit_problem(name, value):
                yield Problem(f"{section}.{key}", message)
    scheduler = parts.get("training", {}).get("scheduler_type")
    if isinstance(scheduler, str):
        kind = names.training_fields()["lr_scheduler_type"]
        if message := type_problem(scheduler, kind):
            yield Problem("training.scheduler_type", message)


def _optuna_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    search = parts.get("search", {})
    for section, registry in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        given = search.get(section)
        if not isinstance(given, Mapping):
            continue
        default = sections.SearchSection.model_fields[section].default.name
        name = given.get("name", default)
        if name not in registry:
            nearest = did_you_mean(str(name), registry)
            known = f"must be one of {', '.join(sorted(registry))}"
            yield Problem(f"search.{section}.name", f"{known}, got {name!r}{nearest}")
            continue
        accepted = inspect.signature(optuna_class(section, name)).parameters
        for key in given:
            if key in ("name", "seed") or key in accepted:
                continue
            nearest = did_you_mean(str(key), accepted)
            message = f"the {section} '{name}' has no such argument (value {given[key]!r}){nearest}"
            yield Problem(f"search.{section}.{key}", message)


def _conflicts(parts: Mapping[str, Any]) -> Iterator[Problem]:
    training, space = parts.get("training", {}), parts.get("space", {})
    for first, second, reason in _CONFLICTS:
        where = [f"{part}.{second}" for part in ("training", "space") if second in parts.get(part, {})]
        if where and (first in training or first in space):
            yield Problem(where[0], f"stands beside {first}, and {reason}; keep one of the two")
