"""The search space: what a trial samples, under which conditions, and what trial 0 runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from hpo_summarize.config.parameters import (
    MODEL_NAMES,
    condition_of,
    default_values,
    owner_of,
    split_by_owner,
)
from hpo_summarize.config.schema import Recipe
from hpo_summarize.config.space import Condition, Parameter
from hpo_summarize.errors import Problem, RecipeError, did_you_mean

if TYPE_CHECKING:
    import optuna


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
                values[name] = parameter.suggest(trial, name)
        return values

    def baseline(self, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The values of trial 0: those that the recipe fixes, as far as they act together.

        Args:
            given: Values to take in place of those that the recipe fixes.
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
            elif message := self.parameters[name].outside(value):
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
            for value in parameter.edges():
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
            line = f"{name}: {parameter}, trial 0: {self._baseline[name]}"
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
                options = [self._baseline[condition.name], *self.parameters[condition.name].edges()]
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
        RecipeError: The space is empty, or has a dropout or depth that the model does not support.
    """
    fixed = {**default_values(), **recipe.fixed_values(defaults=True), **model_facts}
    outside = {name: value for name, value in fixed.items() if name not in recipe.space}
    parameters = {n: p for n, p in recipe.space.items() if _belongs(n, stage)}
    baseline = {name: p.nearest(fixed.get(name)) for name, p in parameters.items()}
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


def _conditions(
    name: str, parameter: Parameter, space: Mapping[str, Parameter]
) -> tuple[Condition, ...]:
    found = parameter.conditions()
    needs = condition_of(name)
    if needs and needs.name in space and parameter.when.get(needs.name) is not True:
        if not all(map(needs.holds, space[needs.name].edges())):
            found.append(needs)
    return tuple(found)
