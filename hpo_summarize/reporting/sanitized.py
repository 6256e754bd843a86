"""A copy of a study that Optuna's plots show as it is meant."""

from __future__ import annotations

import html
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.redact import redact_url
from hpo_summarize.reporting.outcome import (
    BEST_EPOCH,
    FAILURE,
    Fate,
    Outcome,
    best_epoch_of,
    failure_of,
    fate_of,
    is_finite,
)
from hpo_summarize.study.trials import seconds_of


def copy_study(outcome: Outcome, objectives: Sequence[int]) -> optuna.Study:
    """A study in memory with some of the objectives, and nothing that would mislead a plot.

    Optuna would draw a failed trial that is marked as pruned like a pruned one, and takes text for
    HTML. In the copy such a trial has the state FAIL, like one without a finite value; the text is
    escaped and holds no password. Numbers of trials stay the same.

    Args:
        outcome: The study.
        objectives: Index of each objective to keep; the order is that of the values.
    """
    directions = [StudyDirection[outcome.directions[index].upper()] for index in objectives]
    study = optuna.create_study(directions=directions)
    shown = {trial.number: trial for trial in outcome.trials}
    # Optuna numbers trials as they come; what is not shown leaves its number to a waiting one.
    place = optuna.trial.create_trial(state=TrialState.WAITING)
    for number in range(max(shown, default=-1) + 1):
        study.add_trial(_copy_trial(shown[number], objectives) if number in shown else place)
    return study


def safe(text: str) -> str:
    """Text that plotly shows as it stands, without passwords."""
    return html.escape(redact_url(text), quote=False)


def _copy_trial(trial: FrozenTrial, objectives: Sequence[int]) -> FrozenTrial:
    notes = {BEST_EPOCH: best_epoch_of(trial), FAILURE: failure_of(trial)}
    copy = optuna.trial.create_trial(
        state=_state_to_draw(trial),
        values=[trial.values[index] for index in objectives] if is_finite(trial) else None,
        params={safe(name): _safe_value(value) for name, value in trial.params.items()},
        distributions={safe(n): _safe_choices(d) for n, d in trial.distributions.items()},
        user_attrs={key: _safe_value(note) for key, note in notes.items() if note is not None},
        intermediate_values=trial.intermediate_values,
    )
    copy.datetime_start, copy.datetime_complete = trial.datetime_start, trial.datetime_complete
    if trial.datetime_start is not None and (seconds := seconds_of(trial)) is not None:
        copy.datetime_complete = trial.datetime_start + timedelta(seconds=seconds)
    return copy


def _state_to_draw(trial: FrozenTrial) -> TrialState:
    if is_finite(trial) or not trial.state.is_finished() or fate_of(trial) is Fate.PRUNED:
        return trial.state
    return TrialState.FAIL


def _safe_value(value: Any) -> Any:
    return safe(value) if isinstance(value, str) else value


def _safe_choices(distribution: BaseDistribution) -> BaseDistribution:
    if not isinstance(distribution, CategoricalDistribution):
        return distribution
    return CategoricalDistribution([_safe_value(choice) for choice in distribution.choices])
