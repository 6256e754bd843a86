"""The search space: what a trial samples, under which conditions, and what trial 0 runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hpo_summarize.config.parameters import (
    MODEL_NAMES,
    WORDS_OF_LORA_KEYS,
    default_values,
    implied_condition,
    lets_act,
    owner_of,
    split_by_owner,
)
from hpo_summarize.config.schema import CategoricalParameter, IntParameter, Parameter, Recipe
from hpo_summarize.config.settings import is_among
from hpo_summarize.config.space_rules import outside
from hpo_summarize.errors import Problem, RecipeError, did_you_mean

if TYPE_CHECKING:
    import optuna


# In words: what each name of `implied_condition` must be.
_IMPLIED = {
    "do_sample": "do_sample is True",
    "num_beams": "num_beams is above 1",
    "scheduler_type": "scheduler_type has a warm-up",
}


@dataclass(frozen=True)
class TrialSpec:
    """The values of a trial, decided once and split by what they act on.

    Attributes:
        values: All hyperparameters by name.
        training: Those of the training arguments.
        generation: Those of the generation config.
        lora: Those of the adapter.
        model: Those of the model's configuration: dropout and depth.
    """

    values: Mapping[str, Any]
    training: Mapping[str, Any]
    generation: Mapping[str, Any]
    lora: Mapping[str, Any]
    model: Mapping[str, Any]

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> TrialSpec:
        """Splits values by their owner.

        Raises:
            ValueError: A name has no owner.
        """
        return cls(dict(values), **split_by_owner(values))


@dataclass(frozen=True)
class Condition:
    """A parameter is sampled only while the value of `name` is one that `holds` accepts."""

    name: str
    holds: Callable[[Any], bool]
    text: str


class SearchSpace:
    """Samples values for a trial, each parameter only where it can act.

    Args:
        parameters: The `space` section of a recipe.
        fixed: Values of names outside of the space; conditions may name them.
        baseline: The value that trial 0 gives to each parameter.

    `temperature` and the other sampling parameters are sampled only while `do_sample` is true, and
    `length_penalty` only while `num_beams` is above 1, whether the recipe says so or not: a value
    without an effect would mislead the sampler.
    """

    def __init__(
        self,
        parameters: Mapping[str, Parameter],
        fixed: Mapping[str, Any],
        baseline: Mapping[str, Any],
    ) -> None:
        self.fixed = dict(fixed)
        self._conditions = {
            name: _conditions(name, p, parameters) for name, p in parameters.items()
        }
        self.parameters = self._active_in_order(parameters)
        self._baseline = {name: baseline[name] for name in self.parameters}

    def sample(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Samples every parameter whose conditions hold, parents before children."""
        values: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if self._acts(name, values):
                values[name] = _suggest(trial, name, parameter)
        return values

    def baseline(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The values of trial 0: those that the recipe fixes, as far as they act together.

        Args:
            given: Values to take in the place of those that the recipe fixes.
        """
        wanted, values = {**self._baseline, **(given or {})}, dict[str, Any]()
        for name in self.parameters:
            if self._acts(name, values):
                values[name] = wanted[name]
        return values

    def problems_of(self, given: Mapping[str, Any]) -> dict[str, str]:
        """What is wrong with the values of a baseline, by name."""
        found, values = {}, self.baseline(given)
        for name, value in given.items():
            if name not in self.parameters:
                nearest = did_you_mean(name, self.parameters, "take it out")
                found[name] = f"is not searched (value {value!r}){nearest}"
            elif message := outside(self.parameters[name], value):
                found[name] = message
            elif name not in values:
                conditions = " and ".join(c.text for c in self._conditions[name])
                found[name] = f"acts only while {conditions} (value {value!r}); take it out"
        return found

    def variants(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """Trial 0 with one value changed, for every choice and both ends of every range.

        What decides whether the changed parameter acts is changed with it.

        Yields:
            Name and value of the changed parameter, and all values.
        """
        for name, parameter in self.parameters.items():
            for value in edges(parameter):
                wanted = {**self._enabling(name), name: value}
                values: dict[str, Any] = {}
                for other in self.parameters:
                    if self._acts(other, values):
                        values[other] = wanted.get(other, self._baseline[other])
                if name in values:
                    yield name, value, values

    def acting(self, values: Mapping[str, Any]) -> list[str]:
        """The parameters whose conditions hold beside these values; a trial has no others."""
        return [name for name in self.parameters if self._acts(name, values)]

    def explain(self) -> list[str]:
        """One line a parameter: its range, its condition and its value in trial 0."""
        lines = []
        for name, parameter in self.parameters.items():
            conditions = " and ".join(c.text for c in self._conditions[name])
            line = f"{name}: {_span(parameter)}, trial 0: {self._baseline[name]}"
            lines.append(f"{line}, only while {conditions}" if conditions else line)
        return lines

    def _acts(self, name: str, values: Mapping[str, Any]) -> bool:
        known = {**self.fixed, **values}
        return all(c.name in known and c.holds(known[c.name]) for c in self._conditions[name])

    def _enabling(self, name: str) -> dict[str, Any]:
        """Values of the other parameters under which this one acts."""
        found: dict[str, Any] = {}
        for condition in self._conditions[name]:
            if condition.name in self.parameters:
                options = [self._baseline[condition.name], *edges(self.parameters[condition.name])]
                holding = [value for value in options if condition.holds(value)]
                found |= self._enabling(condition.name)
                found |= {condition.name: value for value in holding[:1]}
        return found

    def _active_in_order(self, parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """Parents before children; what a fixed value rules out for the whole run is left out."""
        waiting, ordered = dict(parameters), dict[str, Parameter]()
        while waiting:
            ready = [
                name
                for name in waiting
                if not any(condition.name in waiting for condition in self._conditions[name])
            ]
            for name in ready:
                parameter = waiting.pop(name)
                if all(c.name in ordered or self._ruled_in(c) for c in self._conditions[name]):
                    ordered[name] = parameter
        return ordered

    def _ruled_in(self, condition: Condition) -> bool:
        return condition.name in self.fixed and condition.holds(self.fixed[condition.name])


Stage = Literal["joint", "training", "decoding"]


def build_space(
    recipe: Recipe, model_facts: Mapping[str, Any], stage: Stage = "joint"
) -> SearchSpace:
    """The search space of a recipe for a model.

    Args:
        recipe: The checked recipe.
        model_facts: `model_type`, and the value of each of `MODEL_NAMES` that the model has.
        stage: `joint` takes all parameters, `decoding` those of generation, `training` the others.

    Raises:
        RecipeError: The space is empty, or holds a dropout or depth that the model has not.
    """
    fixed = {**default_values(), **_fixed_values(recipe), **model_facts}
    outside = {name: value for name, value in fixed.items() if name not in recipe.space}
    parameters = {n: p for n, p in recipe.space.items() if _belongs(n, stage)}
    baseline = {name: _nearest(p, fixed.get(name)) for name, p in parameters.items()}
    space = SearchSpace(parameters, outside, baseline)
    missing = [n for n in space.parameters if n in MODEL_NAMES and n not in model_facts]
    problems = [Problem(f"space.{name}", _not_in_model(name, model_facts)) for name in missing]
    problems += [
        Problem(f"search.baselines.{number}.{name}", message)
        for number, given in enumerate(recipe.search.baselines)
        for name, message in space.problems_of(_of_stage(given, recipe, stage)).items()
    ]
    if not space.parameters:
        problems.append(Problem("space", "nothing is left to search; add at least one parameter"))
    if problems:
        raise RecipeError(problems)
    return space


def _belongs(name: str, stage: Stage) -> bool:
    is_decoding = owner_of(name) == "generation"
    return stage == "joint" or is_decoding == (stage == "decoding")


def _of_stage(given: Mapping[str, Any], recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """A baseline without the values of the other stage."""
    return {n: v for n, v in given.items() if n not in recipe.space or _belongs(n, stage)}


def _not_in_model(name: str, facts: Mapping[str, Any]) -> str:
    model_type = facts["model_type"]
    return (
        f"a model of the type '{model_type}' has no setting for it, so it cannot act; drop it, "
        f"or give it a condition such as when: {{model_type: bart}}"
    )


def _fixed_values(recipe: Recipe) -> dict[str, Any]:
    lora = recipe.lora.model_dump() if recipe.lora else {}
    return {
        **recipe.training.model_dump(),
        **recipe.generation.model_dump(),
        **{WORDS_OF_LORA_KEYS.get(key, key): value for key, value in lora.items()},
    }


def _nearest(parameter: Parameter, value: Any) -> Any:
    """The value of a parameter's range nearest to `value`; its middle where there is none."""
    if isinstance(parameter, CategoricalParameter):
        if value in parameter.choices:
            return value
        numbers = [c for c in parameter.choices if isinstance(c, int | float)]
        if numbers and isinstance(value, int | float):
            return min(numbers, key=lambda choice: abs(choice - value))
        return parameter.choices[0]
    low, high = parameter.low, parameter.high
    if not isinstance(value, int | float):
        value = (low * high) ** 0.5 if parameter.log else (low + high) / 2
    value = min(max(value, low), high)
    if parameter.step and not parameter.log:
        value = min(low + round((value - low) / parameter.step) * parameter.step, high)
    return round(value) if isinstance(parameter, IntParameter) else value


def _suggest(trial: optuna.trial.BaseTrial, name: str, parameter: Parameter) -> Any:
    if isinstance(parameter, CategoricalParameter):
        return trial.suggest_categorical(name, parameter.choices)
    suggest: Any = trial.suggest_float
    if isinstance(parameter, IntParameter):
        suggest = trial.suggest_int
    return suggest(name, parameter.low, parameter.high, step=parameter.step, log=parameter.log)


def _conditions(
    name: str, parameter: Parameter, space: Mapping[str, Parameter]
) -> tuple[Condition, ...]:
    found = [_equals(other, wanted) for other, wanted in parameter.when.items()]
    decisive = implied_condition(name)
    if decisive and decisive in space and parameter.when.get(decisive) is not True:
        holds = functools.partial(lets_act, name)
        if not all(map(holds, edges(space[decisive]))):
            found.append(Condition(decisive, holds, _IMPLIED[decisive]))
    return tuple(found)


def edges(parameter: Parameter) -> list[Any]:
    """The choices of a categorical parameter, or the two ends of a range."""
    if isinstance(parameter, CategoricalParameter):
        return parameter.choices
    return [parameter.low, parameter.high]


def _equals(name: str, wanted: Any) -> Condition:
    allowed = wanted if isinstance(wanted, list) else [wanted]
    text = f"{name} is {' or '.join(str(value) for value in allowed)}"
    return Condition(name, lambda value: is_among(value, allowed), text)


def _span(parameter: Parameter) -> str:
    if isinstance(parameter, CategoricalParameter):
        return "one of " + ", ".join(str(choice) for choice in parameter.choices)
    log = ", log" if parameter.log else ""
    return f"{parameter.low:g} to {parameter.high:g}{log}"
