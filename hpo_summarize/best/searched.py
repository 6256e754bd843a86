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
    values_of,
)
from hpo_summarize.space import SearchSpace
from hpo_summarize.study import build_storage, default_storage_url


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
    url = recipe.search.storage
    shown = redact_url(url or default_storage_url(folder))
    problem = StudyError(
        f"there is no study '{name}' in {shown}, and trials other than the best are read from it; "
        "set output_dir, or search.storage, to those of the search"
    )
    if url is None and not (folder / "study.db").is_file():
        raise problem  # To open it would make an empty one.
    try:
        storage = build_storage(url or default_storage_url(folder))
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        raise problem from None
    except Exception as error:  # SQLAlchemy, its drivers and Optuna each raise their own.
        reason = redact_url((str(error).strip() or type(error).__name__).splitlines()[0])
        raise StudyError(f"the storage {shown} cannot be read ({reason}); is it there?") from None
