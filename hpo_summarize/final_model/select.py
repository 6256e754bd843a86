"""The trials that a final model can be made of: from `best_params.json`, or from the study."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from hpo_summarize.components import Experiment
from hpo_summarize.config.parameters import owner_of
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import Problem, RecipeError, RunStopped, StudyError, did_you_mean
from hpo_summarize.redact import redact_url
from hpo_summarize.reporting.outcome import (
    Outcome,
    best_epoch_of,
    is_finite,
    read_study,
    trained_trial_of,
)
from hpo_summarize.search_space import SearchSpace
from hpo_summarize.study.fingerprint import check_result
from hpo_summarize.study.location import find_study
from hpo_summarize.study.storage import default_storage_url
from hpo_summarize.study.trials import values_of
from hpo_summarize.study.user_attrs import DECODING_STUDY


@dataclass(frozen=True)
class Candidate:
    """A finished trial of a search.

    Attributes:
        number: Number of the trial.
        params: All its hyperparameters by name.
        epoch: Best epoch, above 0, from which its weights and its values are.
        values: Value of each objective.
        study_name: The study that it belongs to.
        max_new_tokens: Most tokens of a summary, as the study recorded it; None: it did not.
        own_decoding: Whether its decoding is the recipe's own, since in a staged search no other
            was tried in full on it; its values are then those of the first stage.
    """

    number: int
    params: dict[str, Any]
    epoch: float
    values: tuple[float, ...]
    study_name: str
    max_new_tokens: int | None = None
    own_decoding: bool = False

    def n_epochs(self, recipe: Recipe) -> float:
        """The epochs that its schedule was laid out for."""
        return self.params.get("num_epochs", recipe.training.num_epochs)


def first_of_each(candidates: Iterable[Candidate]) -> list[Candidate]:
    """One candidate a trained trial: a staged search has several decodings of it."""
    found: dict[int, Candidate] = {}
    for one in candidates:
        found.setdefault(one.number, one)
    return list(found.values())


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
        elif message := recipe.space[name].outside(value):
            yield Problem(name, f"{message}; {_SAME_RECIPE}")
    known = {name: value for name, value in params.items() if name in space.parameters}
    acting = space.acting(known)
    missing = [name for name in acting if name not in params]
    if recipe.search.decode == "staged" and missing == [
        name for name in acting if owner_of(name) == "generation"
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


BEST_PARAMS = "best_params.json"
_NEXT = f"run scripts/search.py again, which writes it anew, or name another {BEST_PARAMS}"


def read_candidates(path: Path, maximize: bool) -> list[Candidate]:
    """The trials in `best_params.json`: the best one, or the front, best in its first objective.

    Of several decodings of one trained trial in the front, the best in the first objective stands
    for it.

    Raises:
        StudyError: The file is not there, is damaged, or holds no result.
    """
    content = _read_json(path)
    if content.get("message"):
        raise StudyError(f"{path}: the search has no result yet. {content['message']}")
    try:
        if "pareto_front" in content:
            found = [_from_front(item, content) for item in content["pareto_front"]]
            sign = -1 if maximize else 1
            found.sort(key=lambda one: (sign * one.values[0], one.number))
            return first_of_each(found)
        return [
            Candidate(
                int(content["best_trial_number"]),
                dict(content["best_params"]),
                float(content["best_epoch"]),
                (float(content["best_value"]),),
                str(content["study_name"]),
                content.get("max_new_tokens"),
            )
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError(f"{path} is no {BEST_PARAMS} of a search ({error!r}); {_NEXT}") from None


def _from_front(item: Mapping[str, Any], content: Mapping[str, Any]) -> Candidate:
    return Candidate(
        int(item["number"]),
        dict(item["params"]),
        float(item["epoch"]),
        tuple(float(item["values"][name]) for name in content["objectives"]),
        str(content["study_name"]),
        content.get("max_new_tokens"),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(
            f"there is no file {path}; run scripts/search.py with this recipe first, or give the "
            f"{BEST_PARAMS} of a search with --best_params"
        ) from None
    except OSError as error:
        raise StudyError(f"{path} cannot be read ({error.strerror}); {_NEXT}") from None
    except ValueError as error:
        raise StudyError(f"{path} is damaged ({error}); {_NEXT}") from None
    if not isinstance(content, dict):
        raise StudyError(f"{path} is no {BEST_PARAMS}, it holds {content!r:.80}; {_NEXT}")
    return content


def from_study(
    recipe: Recipe, space: SearchSpace, folder: Path, name: str, trial: int | None = None
) -> list[Candidate]:
    """The complete trials of the study, the best in the first objective first.

    In a staged search each has the best decoding that was found for it. Those of which no decoding
    is complete come last, with the recipe's own.
    """
    study = _open(recipe, folder, name)
    outcome = read_study(study)
    found = _ranked(outcome)
    if DECODING_STUDY in study.user_attrs:
        decoded = _ranked(read_study(_open(recipe, folder, study.user_attrs[DECODING_STUDY])))
        others = [_with_own_decoding(one, space) for one in found] if decoded else found
        found = first_of_each([*decoded, *others])
    found = [
        replace(one, study_name=name, max_new_tokens=outcome.max_new_tokens)
        for one in found
        if trial in (None, one.number)
    ]
    if not found:
        what = "no trial is complete" if trial is None else f"trial {trial} is not complete"
        raise StudyError(
            f"{what} in the study '{name}'; take one that all_trials.csv shows as COMPLETE"
        )
    return found


def _ranked(outcome: Outcome) -> list[Candidate]:
    """The complete trials of one stage, the best in the first objective first."""
    found = [
        Candidate(
            trained_trial_of(t),
            values_of(t),
            float(best_epoch_of(t) or 0),
            tuple(t.values),
            outcome.name,
        )
        for t in outcome.trials
        if is_finite(t)
    ]
    sign = -1 if outcome.directions[0] == "maximize" else 1
    return sorted(found, key=lambda one: (sign * one.values[0], one.number))


def _with_own_decoding(candidate: Candidate, space: SearchSpace) -> Candidate:
    values = space.baseline(candidate.params)
    own = {name: v for name, v in values.items() if owner_of(name) == "generation"}
    return replace(candidate, params={**own, **candidate.params}, own_decoding=True)


def _open(recipe: Recipe, folder: Path, name: str) -> optuna.Study:
    url = recipe.search.storage or default_storage_url(folder)
    study = find_study(url, name)
    if study is None:
        raise StudyError(
            f"there is no study '{name}' in {redact_url(url)}, and trials other than the best are "
            "read from it; set output_dir, or search.storage, to those of the search"
        )
    return study


def choose_candidates(
    experiment: Experiment, path: Path, top: int = 1, trial: int | None = None
) -> tuple[list[Candidate], list[str]]:
    """`find_candidates`, for the recipe of an experiment, which takes over their output length.

    Returns:
        The trials, and what a user should know of them, one sentence each.

    Raises:
        StudyError: As there; or the study, where it can be read, was made with another recipe.
        RecipeError: As there.
    """
    recipe = experiment.recipe
    found = find_candidates(recipe, experiment.whole_space, path, top, trial)
    experiment.adopt_length(found[0].max_new_tokens)
    storage = recipe.search.storage or default_storage_url(path.parent)
    name = found[0].study_name
    try:
        study = find_study(storage, name)
    except (StudyError, RunStopped):  # The folder of a search may be read-only.
        study = None
    if study is None:
        where = f"there is no study '{name}' to be read in {redact_url(storage)}"
        return found, [f"the recipe is not compared with the one of the search: {where}"]
    check_result(study, experiment.decided_recipe)
    return found, []


def find_candidates(
    recipe: Recipe,
    space: SearchSpace,
    path: Path,
    top: int = 1,
    trial: int | None = None,
) -> list[Candidate]:
    """The best trial of a search, its `top` best ones, or one by its number.

    With several objectives the trials of the Pareto front count, the best in the first objective
    first. Those of a staged search are its trained trials, each with one decoding.

    Args:
        recipe: The recipe of the search.
        space: The search space of the recipe, of both stages; every value must lie in it.
        path: `best_params.json`. What it does not hold is taken from the study that it names.
        top: At least 1.
        trial: Number of a finished trial; `top` has no say then.

    Raises:
        StudyError: The file or the study is not there, is damaged, or has no such trial.
        RecipeError: The trials are of another recipe; the message lists what does not fit.
    """
    candidates = read_candidates(path, recipe.search.direction == "maximize")
    folder, named_study = _folder_of_study(recipe, path), candidates[0].study_name
    if trial is not None:
        named = [one for one in candidates if one.number == trial]
        candidates = named or from_study(recipe, space, folder, named_study, trial)
    elif top > 1:
        if len(candidates[0].values) == 1:
            candidates = from_study(recipe, space, folder, named_study)
        if len(candidates) < top:
            raise StudyError(
                f"the {top} best trials are wanted, and the study '{named_study}' has "
                f"{len(candidates)} to choose from; lower --top, or search on"
            )
    chosen = candidates if trial is not None else candidates[:top]
    return [checked(one, recipe, space, path) for one in chosen]


def _folder_of_study(recipe: Recipe, path: Path) -> Path:
    """The folder of `best_params.json`; the recipe's own where that one holds no study."""
    return path.parent if (path.parent / "study.db").is_file() else Path(recipe.output_dir)
