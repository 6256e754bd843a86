"""What became of the trials of a study, as the result files, the plots and the report show it."""

from __future__ import annotations

import enum
import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.redact import redact_url
from hpo_summarize.study.trials import pareto_front
from hpo_summarize.study.user_attrs import (
    BEST_EPOCH,
    EARLIER,
    FAILURE,
    INTERRUPTED,
    MAX_NEW_TOKENS,
    OBJECTIVES,
    STAGE,
    SUMMARIES,
    SURPLUS,
    TRAINED_TRIAL,
    WARM_START,
    WORKER,
)

NO_REASON = "no reason recorded"


class Fate(enum.Enum):
    """How a trial ended, or where it stands."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"
    INTERRUPTED = "INTERRUPTED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"


FINISHED = (Fate.COMPLETE, Fate.PRUNED, Fate.FAIL)


def fate_of(trial: FrozenTrial) -> Fate:
    """What became of a trial; one that failed counts as such although Optuna calls it pruned."""
    if trial.user_attrs.get(INTERRUPTED) and trial.state == TrialState.FAIL:
        return Fate.INTERRUPTED
    if trial.state.is_finished() and FAILURE in trial.user_attrs:
        return Fate.FAIL
    if trial.state == TrialState.FAIL and WORKER in trial.user_attrs:
        return Fate.INTERRUPTED  # Failed by the heartbeats of a storage: its worker is gone.
    return Fate[trial.state.name]


def trained_trial_of(trial: FrozenTrial) -> int:
    """Number of the trial that trained a trial's weights: an earlier one in a decoding stage."""
    return trial.user_attrs.get(TRAINED_TRIAL, trial.number)


def failure_of(trial: FrozenTrial) -> str | None:
    """Why a trial failed; None for one that did not."""
    if fate_of(trial) is not Fate.FAIL:
        return None
    return redact_url(str(trial.user_attrs.get(FAILURE) or NO_REASON))


def summaries_of(trial: FrozenTrial) -> dict[str, Any] | None:
    """What the summaries of a trial are like, passwords hidden; None where nothing is known."""
    found = trial.user_attrs.get(SUMMARIES)
    return found and {**found, "examples": [redact_url(text) for text in found["examples"]]}


def best_epoch_of(trial: FrozenTrial) -> int | float | None:
    """The epoch that a trial's value comes from, an int where it is whole."""
    epoch = trial.user_attrs.get(BEST_EPOCH)
    return int(epoch) if isinstance(epoch, float) and epoch.is_integer() else epoch


def is_finite(trial: FrozenTrial) -> bool:
    """Whether a trial is complete and has a number for every objective."""
    if trial.state != TrialState.COMPLETE or fate_of(trial) is not Fate.COMPLETE:
        return False
    return all(math.isfinite(value) for value in trial.values)


@dataclass(frozen=True)
class Outcome:
    """A study at one moment.

    Attributes:
        name: Name of the study.
        objectives: Name of each objective.
        directions: `"maximize"` or `"minimize"` for each objective.
        trials: All trials by number, without the copies of an earlier study's. They belong to the
            study: to be read only.
        is_decoding: Whether this is the second stage of a staged search.
        max_new_tokens: Most tokens of a summary, where a trial does not say it; None: not recorded.
        warm_start: Which earlier study there are copies of, and how many.
    """

    name: str
    objectives: list[str]
    directions: list[str]
    trials: list[FrozenTrial]
    is_decoding: bool = False
    max_new_tokens: int | None = None
    warm_start: dict[str, Any] | None = None

    @property
    def several(self) -> bool:
        """Whether there is more than one objective."""
        return len(self.objectives) > 1

    @functools.cached_property
    def counts(self) -> Counter[Fate]:
        """Number of trials by what became of them."""
        return Counter(fate_of(trial) for trial in self.trials)

    @property
    def n_finished(self) -> int:
        """Trials that ran to an end of their own: complete, pruned or failed."""
        return sum(self.counts[fate] for fate in FINISHED)

    @functools.cached_property
    def best(self) -> list[FrozenTrial]:
        """The best trial, or with several objectives the Pareto front by number; maybe empty."""
        trials = [trial for trial in self.trials if is_finite(trial)]
        if not trials:
            return []
        gains = np.array([trial.values for trial in trials]) * self._signs()
        if not self.several:
            return [trials[int(gains[:, 0].argmax())]]
        return [trials[place] for place in pareto_front(-gains)]

    @functools.cached_property
    def failures(self) -> dict[str, int]:
        """How often each reason for a failure occurred, the most frequent first."""
        reasons = Counter(r for trial in self.trials if (r := failure_of(trial)) is not None)
        return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))

    def why_no_result(self) -> str:
        """What happened to the trials of a study in which none is complete."""
        if not self.counts:
            return "The study has no trial yet."
        parts = [f"{count} {_WORDS[fate]}" for fate in Fate if (count := self.counts[fate])]
        text = f"No trial gave a result, so there are no best values: {', '.join(parts)}."
        if self.failures:
            reasons = "; ".join(f"{reason} ({n})" for reason, n in self.failures.items())
            text += f" Reasons of the failures: {reasons}. Mend them and run the search again."
        elif self.counts[Fate.PRUNED]:
            text += " Loosen the pruner (more start-up trials or warm-up epochs) and run again."
        return text

    def _signs(self) -> list[int]:
        return [1 if direction == "maximize" else -1 for direction in self.directions]


_WORDS = {
    Fate.COMPLETE: "complete, but without a finite value",
    Fate.PRUNED: "pruned",
    Fate.FAIL: "failed",
    Fate.INTERRUPTED: "interrupted",
    Fate.RUNNING: "running",
    Fate.WAITING: "waiting",
}


def read_study(study: optuna.Study) -> Outcome:
    """Reads a study once, without copying its trials."""
    directions = [direction.name.lower() for direction in study.directions]
    names = objective_names(study.user_attrs.get(OBJECTIVES), len(directions))
    wanted = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if not trial.user_attrs.keys() & {SURPLUS, EARLIER}
    ]
    trials = sorted(wanted, key=lambda trial: trial.number)
    return Outcome(
        redact_url(study.study_name),
        names,
        directions,
        trials,
        is_decoding=study.user_attrs.get(STAGE) == "decoding",
        max_new_tokens=study.user_attrs.get(MAX_NEW_TOKENS),
        warm_start=study.user_attrs.get(WARM_START),
    )


def objective_names(recorded: Sequence[str] | None, count: int) -> list[str]:
    """The recorded names if there is one for each objective, `value`, `value_0`... otherwise."""
    if recorded and len(recorded) == count:
        return [redact_url(str(name)) for name in recorded]
    return ["value"] if count == 1 else [f"value_{index}" for index in range(count)]
