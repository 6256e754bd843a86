"""Which trials of a study count, and which are its best."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.errors import SearchFailed
from hpo_summarize.study.user_attrs import CONTINUES, EARLIER, FAILURE, SECONDS, VALUES


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial has ended and counts towards `n_trials`.

    What a stop or a crash cut off does not: such a trial is marked, or was failed by the heartbeats
    without a reason of its own. A copy of an earlier study's trial was not run here.
    """
    if EARLIER in trial.user_attrs:
        return False
    if trial.state == TrialState.FAIL:
        return FAILURE in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def values_of(trial: FrozenTrial) -> dict[str, Any]:
    """All hyperparameters of a trial, by name in alphabetical order.

    They differ from `trial.params`, which only the sampler goes by, where `hp_space` derives values
    from what it samples, and in the second stage of a staged search.
    """
    return dict(sorted(trial.user_attrs.get(VALUES, trial.params).items()))


def seconds_of(trial: FrozenTrial) -> float | None:
    """Duration of an ended trial; None for one that has not ended.

    Optuna's own is a difference of local times, and negative where the clock was set back. It is
    taken, and 0 in place of a negative one, where a trial was cut off before it could be measured.
    """
    if trial.duration is None:
        return None
    return trial.user_attrs.get(SECONDS, max(trial.duration.total_seconds(), 0.0))


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count towards `n_trials`, by number."""
    return [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]


def best_trials(study: optuna.Study, count: int = 1) -> list[FrozenTrial]:
    """The `count` best complete trials, best first; with several objectives the Pareto front.

    Only trials that this study measured are among them, and no copies of an earlier study's.
    """
    complete = [
        trial
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if counts(trial)
    ]
    signs = [-1 if d == StudyDirection.MAXIMIZE else 1 for d in study.directions]
    if len(signs) == 1:
        return sorted(complete, key=lambda t: (signs[0] * t.values[0], t.number))[:count]
    losses = np.array([trial.values for trial in complete]).reshape(-1, len(signs)) * signs
    return [complete[place] for place in pareto_front(losses)]


def pareto_front(losses: np.ndarray) -> list[int]:
    """The rows that no other row beats: one that is nowhere above them, and somewhere below.

    Args:
        losses: Shape `(trials, objectives)`; the smaller, the better.

    Returns:
        Indices of the rows, ascending.
    """
    return [
        place
        for place, loss in enumerate(losses)
        if not ((losses <= loss).all(axis=1) & (losses < loss).any(axis=1)).any()
    ]


def baseline_trial(study: optuna.Study) -> FrozenTrial | None:
    """The complete trial of the recipe's own values: trial 0, or the one that went on with it.

    None where it was pruned: what it is then said to be worth is that of an early epoch.
    """
    trials = study.get_trials(deepcopy=False)
    first = trials[0] if trials else None
    for trial in trials[1:]:
        if first is not None and trial.user_attrs.get(CONTINUES) == first.number:
            first = trial
    return first if first is not None and first.state == TrialState.COMPLETE else None


def require_complete(study: optuna.Study, timeout: float | None = None) -> None:
    """Checks that a study has a result.

    Args:
        study: The study.
        timeout: Seconds after which the run that has just ended was to start no new trial.

    Raises:
        SearchFailed: No trial is complete; the message lists how each ended.
    """
    if best_trials(study):
        return
    fates = [
        f"  trial {trial.number}: {trial.user_attrs.get(FAILURE) or trial.state.name.lower()}"
        for trial in finished_trials(study)
    ]
    if not fates:
        none = f"no trial of the study '{study.study_name}' has ended yet"
        if timeout is None:
            raise SearchFailed(f"{none}; run the search, or call optimize(), first")
        raise SearchFailed(
            f"{none}: the timeout of {timeout:g} seconds ended the run before a trial could end; "
            "give it more time, or none, and run again"
        )
    raise SearchFailed(
        "\n".join(
            [f"no trial of the study '{study.study_name}' came to its end:", *fates]
            + ["Fix the cause, or use a less aggressive pruner, and run again with more trials"]
        )
    )
