"""A study and its trials as the result files, the plots and the report show them."""

from __future__ import annotations

import enum
import functools
import math
from collections import Counter
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


class Status(enum.Enum):
    """How a trial ended, or where it stands; the values are those of `all_trials.csv`."""

    COMPLETE = "COMPLETE"
    PRUNED = "PRUNED"
    FAIL = "FAIL"
    INTERRUPTED = "INTERRUPTED"
    RUNNING = "RUNNING"
    WAITING = "WAITING"

    @property
    def label(self) -> str:
        """The word for a reader."""
        return "failed" if self is Status.FAIL else self.value.lower()


def status_of(trial: FrozenTrial) -> Status:
    """How a trial ended; one that failed counts as failed although Optuna calls it pruned."""
    if trial.user_attrs.get(INTERRUPTED) and trial.state == TrialState.FAIL:
        return Status.INTERRUPTED
    if trial.state.is_finished() and FAILURE in trial.user_attrs:
        return Status.FAIL
    if trial.state == TrialState.FAIL and WORKER in trial.user_attrs:
        return Status.INTERRUPTED  # Failed by the heartbeats of a storage: its worker died.
    return Status[trial.state.name]


def trained_trial_of(trial: FrozenTrial) -> int:
    """Number of the trial that trained a trial's weights: an earlier one in a decoding stage."""
    return trial.user_attrs.get(TRAINED_TRIAL, trial.number)


def failure_of(trial: FrozenTrial) -> str | None:
    """Why a trial failed; None for one that did not."""
    if status_of(trial) is not Status.FAIL:
        return None
    return redact_url(str(trial.user_attrs.get(FAILURE) or "no reason recorded"))


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
    complete = status_of(trial) is Status.COMPLETE
    return complete and all(math.isfinite(value) for value in trial.values)


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
    def counts(self) -> Counter[Status]:
        """Number of trials by status."""
        return Counter(status_of(trial) for trial in self.trials)

    @property
    def n_finished(self) -> int:
        """Number of trials that are complete, pruned or failed."""
        return sum(self.counts[s] for s in (Status.COMPLETE, Status.PRUNED, Status.FAIL))

    @functools.cached_property
    def best(self) -> list[FrozenTrial]:
        """The best trial, or with several objectives the Pareto front by number; maybe empty."""
        trials = [trial for trial in self.trials if is_finite(trial)]
        signs = [-1 if direction == "maximize" else 1 for direction in self.directions]
        losses = np.array([trial.values for trial in trials]).reshape(-1, len(signs)) * signs
        front = [trials[place] for place in pareto_front(losses)]
        return front if self.several else front[:1]

    @functools.cached_property
    def failures(self) -> dict[str, int]:
        """How often each reason for a failure occurred, the most frequent first."""
        reasons = Counter(r for trial in self.trials if (r := failure_of(trial)) is not None)
        return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))

    def why_no_result(self) -> str:
        """How the trials ended where none has a finite value; empty where there is a best one."""
        if self.best:
            return ""
        if not self.counts:
            return "The study has no trial yet."
        parts = ", ".join(f"{n} {s.label}" for s in Status if (n := self.counts[s]))
        text = f"No trial has a finite value, so there are no best hyperparameters: {parts}."
        if self.failures:
            reasons = "; ".join(f"{reason} ({n})" for reason, n in self.failures.items())
            text += f" Reasons of the failures: {reasons}. Fix the cause and run the search again."
        elif self.counts[Status.PRUNED]:
            text += " Use a less aggressive pruner (more start-up trials or warm-up epochs)."
        return text


def read_study(study: optuna.Study) -> Outcome:
    """Reads a study once, without copying its trials.

    Objectives without a recorded name each are called `value`, or `value_0`, `value_1` and so on.
    """
    notes, count = study.user_attrs, len(study.directions)
    names = notes.get(OBJECTIVES) or []
    if len(names) != count:
        names = ["value"] if count == 1 else [f"value_{index}" for index in range(count)]
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if not trial.user_attrs.keys() & {SURPLUS, EARLIER}
    ]
    return Outcome(
        redact_url(study.study_name),
        [redact_url(name) for name in names],
        [direction.name.lower() for direction in study.directions],
        sorted(trials, key=lambda trial: trial.number),
        is_decoding=notes.get(STAGE) == "decoding",
        max_new_tokens=notes.get(MAX_NEW_TOKENS),
        warm_start=notes.get(WARM_START),
    )
