"""Which trained trials are worth a full evaluation, judged by what earlier ones gained in it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import optuna
from optuna.trial import TrialState

from hpo_summarize.attributes import EPOCH_VALUE
from hpo_summarize.study.trials import counts

# Before so many trials were measured in full, nobody knows how far the two values lie apart.
MIN_FULL = 5
# Of a normal distribution 0.13% lie more than this many standard deviations above the mean.
SPREADS = 3.0


def why_beaten(study: optuna.Study, epoch_value: float, n_best: int) -> str | None:
    """Says why a trial cannot be among the best of its study; None if it still can.

    Args:
        study: A study of one objective.
        epoch_value: The trial's best value from the evaluations after its epochs.
        n_best: Number of best trials that matter, at least 1.
    """
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    full = [
        (sign * trial.values[0], sign * trial.user_attrs[EPOCH_VALUE], trial.number)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if EPOCH_VALUE in trial.user_attrs and counts(trial)
    ]
    if len(full) < max(MIN_FULL, n_best):
        return None
    limit = highest_value(sign * epoch_value, [value - early for value, early, _ in full])
    wanted, _, number = sorted(full, reverse=True)[n_best - 1]
    if limit >= wanted:
        return None
    return (
        f"not measured in full: with {epoch_value:.4f} after its best epoch it would come to "
        f"{sign * limit:.4f} at best, and trial {number} has {sign * wanted:.4f}"
    )


def highest_value(epoch_value: float, gains: Sequence[float]) -> float:
    """The highest value that a full evaluation is likely to give; higher is better.

    Args:
        epoch_value: Value from the evaluation after the trial's best epoch.
        gains: By how much the full evaluation of each earlier trial, two or more, exceeded that.
    """
    return epoch_value + statistics.fmean(gains) + SPREADS * statistics.stdev(gains)
