"""Which trials a final model is made of: those of `best_params.json`, or others of the study."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from hpo_summarize.components import Experiment
from hpo_summarize.config.parameters import owner_of
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import Problem, RecipeError, RunStopped, StudyError
from hpo_summarize.redact import redact_url
from hpo_summarize.search_space import SearchSpace
from hpo_summarize.study.fingerprint import check_result
from hpo_summarize.study.location import find_study
from hpo_summarize.study.storage import default_storage_url
from hpo_summarize.study.trials import Candidate, candidates_of, first_of_each
from hpo_summarize.study.user_attrs import DECODING_STUDY, MAX_NEW_TOKENS

BEST_PARAMS = "best_params.json"


def choose_candidates(
    experiment: Experiment, path: Path, top: int = 1, trial: int | None = None
) -> tuple[list[Candidate], list[str]]:
    """The best trial of a search, its `top` best ones, or one by its number.

    With several objectives the trials of the Pareto front count, the best in the first objective
    first. Those of a staged search are its trained trials, each with one decoding.

    Args:
        experiment: Of the recipe of the search; takes over the output length of the study.
        path: `best_params.json`. What it does not hold is read from the study that it names, in
            `search.storage`, or else beside the file or in `output_dir`.
        top: At least 1.
        trial: Number of a complete trial; `top` has no effect then.

    Returns:
        The trials, and what a user should know of them, one sentence each.

    Raises:
        StudyError: The file or the study is not there, is damaged, has no such trial, or is one of
            another recipe.
        RecipeError: The values do not fit the recipe; the message lists all of them.
    """
    recipe, space = experiment.recipe, experiment.whole_space
    found = read_candidates(path, recipe.search.direction == "maximize")
    name = found[0].study_name
    url = recipe.search.storage or default_storage_url(_folder_of_study(recipe, path))
    if not _are_in_file(found, top, trial):
        found = _read_study(_load_study(url, name), url, space)
    found = _pick(found, name, top, trial)
    for candidate in found:
        if problems := [*_problems(candidate, recipe, space)]:
            rule = "does not fit this recipe; use the recipe that the search ran with"
            raise RecipeError(problems, f"{path}, trial {candidate.number}, {rule}")
    experiment.adopt_length(found[0].max_new_tokens)
    return found, _compare_recipes(experiment, url, name)


def _are_in_file(found: list[Candidate], top: int, trial: int | None) -> bool:
    """Whether `best_params.json` is enough: it holds one trial, or the whole Pareto front."""
    if trial is not None:
        return trial in [candidate.number for candidate in found]
    return top == 1 or len(found[0].values) > 1


def _pick(found: list[Candidate], study: str, top: int, trial: int | None) -> list[Candidate]:
    if trial is None:
        if len(found) < top:
            raise StudyError(
                f"the {top} best trials are wanted, and the study '{study}' has {len(found)} to "
                "choose from; lower --top, or search on"
            )
        return found[:top]
    named = [candidate for candidate in found if candidate.number == trial]
    if not named:
        raise StudyError(
            f"trial {trial} is not complete in the study '{study}'; take one that all_trials.csv "
            "shows as COMPLETE"
        )
    return named


def _folder_of_study(recipe: Recipe, path: Path) -> Path:
    """The folder of `best_params.json`; the recipe's own where that one holds no study."""
    return path.parent if (path.parent / "study.db").is_file() else Path(recipe.output_dir)


def _compare_recipes(experiment: Experiment, url: str, name: str) -> list[str]:
    """Compares the recipe with that of the study; returns a note where the study is not readable.

    Raises:
        StudyError: It is another recipe.
    """
    try:
        study = find_study(url, name)
    except (StudyError, RunStopped):  # The folder of a search may be read-only.
        study = None
    if study is None:
        where = f"there is no study '{name}' to be read in {redact_url(url)}"
        return [f"the recipe is not compared with the one of the search: {where}"]
    check_result(study, experiment.decided_recipe)
    return []


def read_candidates(path: Path, maximize: bool) -> list[Candidate]:
    """The trials in `best_params.json`: the best one, or the front, best in its first objective.

    Of several decodings of one trained trial in the front, the best in the first objective is
    taken.

    Raises:
        StudyError: The file is not there, is damaged, or holds no result.
    """
    sign = -1 if maximize else 1
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = [] if content.get("message") else [*_from_content(content)]
        found.sort(key=lambda candidate: (sign * candidate.values[0], candidate.number))
    except FileNotFoundError:
        raise StudyError(
            f"there is no file {path}; run scripts/search.py with this recipe first, or give the "
            f"{BEST_PARAMS} of a search with --best_params"
        ) from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StudyError(
            f"{path} is no {BEST_PARAMS} of a search ({type(error).__name__}: {error}); run "
            f"scripts/search.py again, which writes it anew, or name another {BEST_PARAMS}"
        ) from None
    if not found:
        raise StudyError(f"{path}: the search has no result yet. {content.get('message', '')}")
    return first_of_each(found)


def _from_content(content: dict[str, Any]) -> Iterator[Candidate]:
    study_name, length = str(content["study_name"]), content.get("max_new_tokens")
    if "pareto_front" in content:
        for one in content["pareto_front"]:
            values = tuple(float(one["values"][name]) for name in content["objectives"])
            params, epoch = dict(one["params"]), float(one["epoch"])
            yield Candidate(int(one["number"]), params, epoch, values, study_name, length)
    else:
        number, value = int(content["best_trial_number"]), float(content["best_value"])
        params, epoch = dict(content["best_params"]), float(content["best_epoch"])
        yield Candidate(number, params, epoch, (value,), study_name, length)


def _load_study(url: str, name: str) -> optuna.Study:
    study = find_study(url, name)
    if study is None:
        raise StudyError(
            f"there is no study '{name}' in {redact_url(url)}, and trials other than the best are "
            "read from it; set output_dir, or search.storage, to those of the search"
        )
    return study


def _read_study(study: optuna.Study, url: str, space: SearchSpace) -> list[Candidate]:
    """The complete trials, the best in the first objective first.

    In a staged search each has the best decoding that was found for it. Those of which no decoding
    is complete come last, with the recipe's own.
    """
    trained = candidates_of(study)
    if DECODING_STUDY not in study.user_attrs:
        return trained
    decoded = candidates_of(_load_study(url, study.user_attrs[DECODING_STUDY]))
    if not decoded:
        return trained
    length = study.user_attrs.get(MAX_NEW_TOKENS)  # Recorded in the first stage alone.
    best = [replace(c, study_name=study.study_name, max_new_tokens=length) for c in decoded]
    return first_of_each([*best, *(_with_own_decoding(c, space) for c in trained)])


def _with_own_decoding(candidate: Candidate, space: SearchSpace) -> Candidate:
    values = space.baseline(candidate.params)
    own = {name: v for name, v in values.items() if owner_of(name) == "generation"}
    return replace(candidate, params={**own, **candidate.params}, own_decoding=True)


def _problems(candidate: Candidate, recipe: Recipe, space: SearchSpace) -> Iterator[Problem]:
    """What keeps a model with the values of a trial from being trained with this recipe."""
    params = candidate.params
    missing = [name for name in space.acting(params) if name not in params]
    decoding = [name for name in space.acting(params) if owner_of(name) == "generation"]
    if recipe.search.decode == "staged" and missing and missing == decoding:
        yield Problem(
            missing[0],
            "the second stage, which searches the decoding, has finished no trial yet; run "
            "scripts/search.py again to continue with it",
        )
        return
    for name, message in space.problems_of(params).items():
        yield Problem(name, message)
    for name in missing:
        yield Problem(name, "this recipe searches it, and the trial has no value")
    limit = candidate.n_epochs(recipe)
    if not 0 < candidate.epoch <= math.ceil(limit):  # The Trainer rounds the steps up.
        rule = f"must be above 0 and at most the {limit:g} epochs of the trial, rounded up"
        yield Problem("best_epoch", f"{rule}, got {candidate.epoch:g}")
