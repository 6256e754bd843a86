"""Which trials of a study count, and which are its best."""

from __future__ import annotations

import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.attributes import FAILURE
from hpo_summarize.errors import SearchFailed


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial has ended and counts towards `n_trials`.

    What a stop or a crash cut off does not: such a trial is marked, or was failed by the heartbeats
    without a reason of its own.
    """
    if trial.state == TrialState.FAIL:
        return FAILURE in trial.user_attrs
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED)


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that count towards `n_trials`, by number."""
    return [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]


def best_trials(study: optuna.Study, count: int = 1) -> list[FrozenTrial]:
    """The `count` best complete trials, best first; with several objectives the Pareto front."""
    if len(study.directions) > 1:
        return study.best_trials
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    return sorted(complete, key=lambda trial: (sign * trial.values[0], trial.number))[:count]


def require_complete(study: optuna.Study) -> None:
    """Checks that a study has a result.

    Raises:
        SearchFailed: No trial is complete; the message says what became of each.
    """
    if study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return
    fates = [
        f"  trial {trial.number}: {trial.user_attrs.get(FAILURE) or trial.state.name.lower()}"
        for trial in finished_trials(study)
    ]
    raise SearchFailed(
        "\n".join(
            [f"no trial of the study '{study.study_name}' came to its end:", *fates]
            + ["Mend the cause, or loosen the pruner, and run again with more trials"]
        )
    )
