"""Whether the values of a trial are those of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpo_summarize import names
from hpo_summarize.best.candidate import Candidate
from hpo_summarize.errors import Problem, RecipeError, did_you_mean
from hpo_summarize.recipe import Recipe
from hpo_summarize.recipe.ranges import outside
from hpo_summarize.space import SearchSpace

_SAME_RECIPE = "use the recipe that the search ran with"


def checked(candidate: Candidate, recipe: Recipe, space: SearchSpace, path: Path) -> Candidate:
    """The same candidate, once everything in it fits the recipe."""
    problems = [*_problems(candidate, recipe, space)]
    if problems:
        source = f"{path}, trial {candidate.number}, does not fit this recipe"
        raise RecipeError(problems, source)
    return replace(candidate, params=_typed(candidate.params, space))


def _problems(candidate: Candidate, recipe: Recipe, space: SearchSpace) -> Iterator[Problem]:
    params = candidate.params
    for name, value in params.items():
        if name not in recipe.space:
            rule = f"this recipe searches no such name (value {value!r})"
            yield Problem(name, f"{rule}{did_you_mean(name, recipe.space, _SAME_RECIPE)}")
        elif message := outside(recipe.space[name], value):
            yield Problem(name, f"{message}; {_SAME_RECIPE}")
    known = {name: value for name, value in params.items() if name in space.parameters}
    acting = space.acting(known)
    missing = [name for name in acting if name not in params]
    if recipe.search.decode == "staged" and missing == [
        name for name in acting if names.owner_of(name) == "generation"
    ]:
        yield Problem(
            missing[0],
            "the second stage, which searches the decoding, has finished no trial yet; run "
            "scripts/search.py again to go on with it",
        )
        return
    for name in acting:
        if name not in params:
            yield Problem(
                name, f"this recipe searches it, and the trial has no value; {_SAME_RECIPE}"
            )
    for name in params:
        if name in recipe.space and name not in acting:
            yield Problem(name, f"cannot act beside the other values; {_SAME_RECIPE}")
    limit = candidate.n_epochs(recipe)
    if not 0 < candidate.epoch <= math.ceil(limit):  # The Trainer rounds the steps up.
        rule = f"must be above 0 and at most the {limit:g} epochs of the trial, rounded up"
        yield Problem("best_epoch", f"{rule}, got {candidate.epoch:g}; {_SAME_RECIPE}")


def _typed(params: Mapping[str, Any], space: SearchSpace) -> dict[str, Any]:
    """A real number stays one where its value is whole, and the file has no point in it."""
    reals = {name for name, p in space.parameters.items() if p.type == "float"}
    return {name: float(value) if name in reals else value for name, value in params.items()}
