"""Everything that is wrong with a recipe, found before anything is loaded.

pydantic checks types and ranges; the rules here are for what would silently have no effect. What
only a class of Hugging Face can know is found by `dry_run`, before the first trial.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hpo_summarize.config.messages import (
    TOO_DEEP,
    explain,
    model_type_problem,
    remaining,
    unusable_values,
    value_problem,
)
from hpo_summarize.config.optuna_rules import optuna_problems
from hpo_summarize.config.parameters import (
    BY_METRIC,
    LEAVES_BASE,
    MODEL_NAMES,
    WORDS_OF_LORA_KEYS,
    condition_of,
    default_values,
    owner_of,
    parameters,
    why_not_searchable,
)
from hpo_summarize.config.schema import SECTIONS, Recipe
from hpo_summarize.config.space import Condition, is_among, is_number
from hpo_summarize.config.unusable import OTHER_NAMES, UNUSABLE
from hpo_summarize.errors import Problem, did_you_mean
from hpo_summarize.redact import remember_secrets

# What a condition may name beside parameters of the space and fixed values.
FACTS = ("model_type", "task")
# The first of each pair has a default, which the second replaces.
CONFLICTS = (
    ("batch_size", "gradient_accumulation_steps", "batch_size is the whole optimizer step"),
    ("warmup_ratio", "warmup_steps", "both say how long the warm-up is"),
)


def validate(
    content: Mapping[str, Any], needs_data: bool = True
) -> tuple[Recipe | None, list[Problem]]:
    """The recipe, and every problem of it.

    Args:
        content: The sections as plain dictionaries, lists and scalars.
        needs_data: Whether the recipe has to say where the data are.

    Returns:
        The recipe, which is usable only where the list is empty.
    """
    unusable = list(unusable_values(content))
    if any(problem.message == TOO_DEEP for problem in unusable):
        return None, unusable  # What follows is recursive.
    remember_secrets(content)
    recipe, refused = None, dict[str, str]()
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        refused = explain(error, content, Recipe)
    for problem in unusable:
        refused.setdefault(problem.key or "recipe", problem.message)
    if recipe is None or refused:
        recipe = remaining(content, refused)
    unknown = {_name_of(key) for key in refused}
    found = [Problem(key, message) for key, message in refused.items()]
    return recipe, [*found, *(_rules(recipe, unknown, needs_data) if recipe else ())]


def _name_of(key: str) -> str:
    """The hyperparameter or else the section of which a refused key says nothing."""
    section, _, rest = key.partition(".")
    name = rest.partition(".")[0]
    return (WORDS_OF_LORA_KEYS.get(name, name) if section == "lora" else name) or section


def _rules(recipe: Recipe, unknown: Set[str], needs_data: bool) -> Iterator[Problem]:
    """Every rule that a recipe breaks.

    Args:
        recipe: The recipe, without what pydantic refused.
        unknown: Names and sections that were refused: that they are absent is no problem.
        needs_data: See `validate`.
    """
    data = recipe.data
    if needs_data and data.name is None and data.train is None and not unknown & {"data", "train"}:
        yield Problem(
            "data",
            "neither name nor train is set; set train to a file, "
            "or name to a folder or a data set on the Hub",
        )
    yield from _origin_problems(recipe)
    yield from _fixed_problems(recipe, unknown)
    yield from _schedule_problems(recipe, unknown)
    yield from length_problems(recipe)
    yield from optuna_problems(recipe)
    yield from _batch_problems(recipe, unknown)
    yield from _adapter_problems(recipe, unknown)
    yield from _space_problems(recipe, unknown)
    yield from _stage_problems(recipe, unknown)


def _values(name: str, recipe: Recipe, unknown: Set[str]) -> list[Any]:
    """The values that a name can have; none where what the recipe says of it was refused."""
    hidden = unknown & {name, str(owner_of(name)), "space"}
    return [] if hidden else recipe.possible_values(name)


def _never_acts(name: str, recipe: Recipe, unknown: Set[str]) -> Condition | None:
    """The condition of a hyperparameter where no value in the recipe fulfils it."""
    condition = condition_of(name)
    values = _values(condition.name, recipe, unknown) if condition else []
    return condition if condition and values and not any(map(condition.holds, values)) else None


def _origin_problems(recipe: Recipe) -> Iterator[Problem]:
    config = recipe.model.from_config
    if config is not None and (message := model_type_problem(config["model_type"])):
        yield Problem("model.from_config.model_type", message)
    for section, part in (("model", recipe.model), ("data", recipe.data)):
        is_local = part.name is None or Path(part.name).expanduser().is_dir()
        if part.revision is not None and is_local:
            rule = "acts on a repository of the Hub only, and name is a folder or not set"
            yield Problem(f"{section}.revision", f"{rule} (value {part.revision!r}); drop it")


def _fixed_problems(recipe: Recipe, unknown: Set[str]) -> Iterator[Problem]:
    """Fixed values that a field cannot have, or that never act."""
    given = {*recipe.fixed_values(), *recipe.space}
    for section in SECTIONS:
        part = getattr(recipe, section)
        for key, value in part.settings().items() if part else ():
            name = WORDS_OF_LORA_KEYS.get(key, key) if section == "lora" else key
            needs = _never_acts(name, recipe, unknown)
            # The decoding of a checkpoint may have it; `dry_run` looks there.
            left_open = section == "generation" and needs and needs.name not in given
            if message := _why_not_fixed(section, key, value):
                yield Problem(f"{section}.{key}", message)
            elif needs and not left_open and value not in (None, default_values().get(name)):
                yield Problem(f"{section}.{key}", f"{needs.advice} (value {value!r})")


def _why_not_fixed(section: str, key: str, value: Any) -> str | None:
    """Says why a key of a section cannot have this value; None if it can."""
    if key in OTHER_NAMES:
        return f"this is set in another place: {OTHER_NAMES[key]}"
    own = {row.key: row for row in parameters().values() if row.owner == section}
    if key in own:
        # Its default does nothing; nor does a flag of a decoding or an adapter that is off.
        neutral = [None, default_values().get(key), *([False] if section != "training" else [])]
        if key in UNUSABLE and value not in neutral:
            return f"cannot be used here (value {value!r}): {UNUSABLE[key]}"
        return value_problem(value, own[key].type)
    if called := [str(row.key) for row in own.values() if key in (row.field, row.name)]:
        return f"this field is called '{called[0]}' here; use that name"
    owner = owner_of(key)
    if owner == "model":
        return f"it cannot be fixed here (value {value!r}), only searched; move it to the space"
    if owner is not None:
        return f"this key belongs to the section {owner} (value {value!r}); move it there"
    usable = own.keys() - UNUSABLE.keys() - OTHER_NAMES.keys()
    return f"unknown key (value {value!r}){did_you_mean(key, sorted(map(str, usable)), 'drop it')}"


def _schedule_problems(recipe: Recipe, unknown: Set[str]) -> Iterator[Problem]:
    """A schedule that follows the metric must know which way is up."""
    mode = "min" if recipe.search.direction == "minimize" else "max"
    given = recipe.fixed_values().get("lr_scheduler_kwargs")
    schedules = [s for s in _values("scheduler_type", recipe, unknown) if s in BY_METRIC]
    if schedules and not (isinstance(given, Mapping) and given.get("mode") == mode):
        yield Problem(
            "training.lr_scheduler_kwargs",
            f"{schedules[0]} follows the objective and takes it for a loss by default "
            f"(value {given!r}); set training.lr_scheduler_kwargs.mode={mode}",
        )


def length_problems(recipe: Recipe, decided: int | None = None) -> Iterator[Problem]:
    """transformers only warns of a summary that must be longer than it may be.

    Args:
        recipe: The recipe.
        decided: The `max_new_tokens` of a recipe that gives none. A least length must be below it:
            with the same length every summary would be cut.
    """
    limits = [v for v in recipe.possible_values("max_new_tokens") if is_number(v)]
    most, below, origin = min(limits, default=None), 0, ""
    if most is None:
        most, below, origin = decided, 1, ", as the training summaries decide"
    for name, extra in (("min_new_tokens", 0), ("min_length", 1)):  # The start token counts there.
        highest = max((v for v in recipe.possible_values(name) if is_number(v)), default=None)
        if most is not None and highest is not None and highest > most + extra - below:
            section = "space" if name in recipe.space else "generation"
            yield Problem(
                f"{section}.{name}",
                f"must be at most {most + extra - below} where max_new_tokens is {most}{origin}, "
                f"got {highest}; lower it, or set a higher max_new_tokens",
            )


def _batch_problems(recipe: Recipe, unknown: Set[str]) -> Iterator[Problem]:
    """Two keys for one thing. `batch_size` has a default, which what splits it does not set."""
    parts = {"training": recipe.training.settings(), "space": recipe.space}
    given = {*parts["training"], *recipe.space, *unknown}
    for first, second, reason in CONFLICTS:
        where = [name for name, part in parts.items() if second in part]
        if where and first in given:
            rule = f"is given beside {first}, and {reason}"
            yield Problem(f"{where[0]}.{second}", f"{rule}; keep one of the two")
    for key in ("gradient_accumulation_steps", "per_device_train_batch_size"):
        if key in parts["training"] and "batch_size" not in given:
            yield Problem(
                f"training.{key}",
                f"only splits batch_size, which is not given (value {parts['training'][key]!r}); "
                "set training.batch_size, the examples of one optimizer step over all devices",
            )
    if "per_device_train_batch_size" in recipe.space and "batch_size" in given:
        rule = "only splits batch_size, so it changes no result"
        yield Problem("space.per_device_train_batch_size", f"{rule}; take it out of the space")


def _adapter_problems(recipe: Recipe, unknown: Set[str]) -> Iterator[Problem]:
    ways = _values("init_lora_weights", recipe, unknown)
    changing = [way for way in ways if way not in LEAVES_BASE]
    reason = None
    if recipe.lora is None:
        reason = "this recipe trains without LoRA"
    elif recipe.model.from_config is not None:
        reason = "the adapter would fit on nothing but random weights that are not kept"
    elif changing:
        reason = f"an adapter with init_lora_weights {changing[0]!r} changes the weights below it"
    if recipe.train.save_adapter and reason and "lora" not in unknown:
        yield Problem("train.save_adapter", f"{reason} (value True); set it to false")


def _space_problems(recipe: Recipe, unknown: Set[str]) -> Iterator[Problem]:
    """Every parameter that cannot be sampled, or could not act."""
    fixed = recipe.fixed_values()
    for name, parameter in recipe.space.items():
        where = f"space.{name}"
        if reason := why_not_searchable(name):
            yield Problem(where, reason)
            continue
        if _without_lora(name, recipe, unknown):
            rule = "this recipe trains without LoRA, so it cannot act"
            yield Problem(where, f"{rule}; add a section lora or drop it")
        elif condition := _never_acts(name, recipe, unknown):
            yield Problem(where, condition.advice)
        kind = parameters()[name].type
        reasons = [value_problem(value, kind) for value in parameter.edges()]
        if reason := next(filter(None, reasons), None):
            yield Problem(where, reason)
        elif (value := fixed.get(name)) is not None and not _is_in(parameter, value):
            yield Problem(
                where,
                f"trial 0 runs the fixed value {value!r} of the recipe, which is outside of "
                f"{parameter}; widen the space or change the fixed value",
            )
        for other, wanted in parameter.wanted().items():
            if reason := _wrong_condition(name, other, wanted, recipe, unknown):
                yield Problem(f"{where}.when.{other}", reason)
    yield from _cycles(recipe)


def _is_in(parameter: Any, value: Any) -> bool:
    nearest = parameter.nearest(value)
    numbers = is_number(value) and is_number(nearest)
    return math.isclose(nearest, value) if numbers else nearest == value


def _without_lora(name: str, recipe: Recipe, unknown: Set[str]) -> bool:
    return owner_of(name) == "lora" and recipe.lora is None and "lora" not in unknown


def _wrong_condition(
    name: str, other: str, wanted: list[Any], recipe: Recipe, unknown: Set[str]
) -> str | None:
    """Says why a condition under `when` names nothing, or never holds; None if it can hold."""
    known = [*recipe.space, *FACTS, *parameters()]
    if other not in {*known, *unknown}:
        rule = "a condition names another parameter, a fixed value or a fact of the model"
        return f"{rule} ({', '.join(FACTS)}), got {other!r}{did_you_mean(other, known)}"
    if other == "model_type" and not recipe.model.trust_remote_code:
        return next(filter(None, map(model_type_problem, wanted)), None)
    if other in FACTS or (other in MODEL_NAMES and other not in recipe.space):
        return None
    if _without_lora(other, recipe, unknown):
        return "this recipe trains without LoRA, so it never holds; add a section lora or drop it"
    implied = condition_of(name)
    if implied and other == implied.name and not any(map(implied.holds, wanted)):
        return f"'{name}' has no effect while {other} is {wanted!r}; drop the condition"
    if other in recipe.space:
        parameter = recipe.space[other]
        holds, span = any(parameter.outside(v) is None for v in wanted), str(parameter)
    else:
        values = _values(other, recipe, unknown)
        holds, span = not values or is_among(values[0], wanted), f"{values[:1]}"
    return None if holds else f"never holds: {other} is {span}, got {wanted!r}; change one of them"


def _cycles(recipe: Recipe) -> Iterator[Problem]:
    """Parameters that wait for one another, by their own conditions or by implied ones."""
    waits = {}
    for name, parameter in recipe.space.items():
        implied = condition_of(name)
        names = {*parameter.when, implied.name} if implied else {*parameter.when}
        waits[name] = names & recipe.space.keys()
    while free := [name for name, others in waits.items() if not others & waits.keys()]:
        for name in free:
            del waits[name]
    if waits:
        ring = ", ".join(sorted(waits))
        yield Problem("space", f"the conditions of {ring} depend on one another; drop one of them")


def _stage_problems(recipe: Recipe, unknown: Set[str]) -> Iterator[Problem]:
    """Every reason why `search.decode: staged` cannot divide the search space in two."""
    if recipe.search.decode != "staged":
        return
    decoding = {name for name in recipe.space if owner_of(name) == "generation"}
    missing = ""
    if not decoding:
        missing = "decoding in a stage of its own, and the space has none of it; add num_beams"
    elif decoding == recipe.space.keys():
        missing = "the training first, and the space has none of it; add learning_rate"
    if missing and not any(owner_of(name) or name == "space" for name in unknown):
        yield Problem("search.decode", f"'staged' searches {missing}, or set decode to joint")
    for name, parameter in recipe.space.items():
        for other in parameter.when.keys() & recipe.space.keys():
            if (other in decoding) != (name in decoding):
                rule = f"with decode: staged, {name} and {other} are searched in different stages"
                message = f"{rule}; drop the condition, or set decode to joint"
                yield Problem(f"space.{name}.when.{other}", message)
    if recipe.training.settings().get("save_strategy") == "no":
        rule = "with decode: staged, the second stage needs the weights of the first, got 'no'"
        yield Problem("training.save_strategy", f"{rule}; set it to epoch")
