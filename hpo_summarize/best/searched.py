"""Any finished trial, as the study has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna

from hpo_summarize import names
from hpo_summarize.attributes import DECODING_STUDY
from hpo_summarize.best.candidate import Candidate, first_of_each
from hpo_summarize.errors import StudyError
from hpo_summarize.recipe import Recipe
from hpo_summarize.redact import redact_url
from hpo_summarize.results.outcome import (
    Outcome,
    best_epoch_of,
    is_finite,
    read_study,
    trained_trial_of,
)
from hpo_summarize.space import SearchSpace
from hpo_summarize.study import default_storage_url, find_study, values_of


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
    own = {name: v for name, v in values.items() if names.owner_of(name) == "generation"}
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
