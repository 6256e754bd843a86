"""Which trials of a study count, and which are its best."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import SearchFailed, StudyError
from hpo_summarize.study.user_attrs import (
    BEST_EPOCH,
    CONTINUES,
    EARLIER,
    FAILURE,
    MAX_NEW_TOKENS,
    SECONDS,
    TRAINED_TRIAL,
    VALUES,
)


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


@dataclass(frozen=True)
class Candidate:
    """A complete trial of a search, which a model can be made of.

    Attributes:
        number: Number of the trial; in a decoding stage, of the one that trained the weights.
        params: All its hyperparameters by name.
        epoch: Best epoch, above 0, from which its weights and its values are.
        values: Value of each objective.
        study_name: The study that it belongs to.
        max_new_tokens: Most tokens of a summary, as the study recorded it; None: it did not.
        own_decoding: Whether its decoding is the recipe's own, since in a staged search no other
            was evaluated in full on it; its values are then those of the first stage.
    """

    number: int
    params: dict[str, Any]
    epoch: float
    values: tuple[float, ...]
    study_name: str
    max_new_tokens: int | None = None
    own_decoding: bool = False

    @classmethod
    def of(cls, trial: FrozenTrial, study: optuna.Study) -> Candidate:
        """A complete trial of a study."""
        return cls(
            number=trial.user_attrs.get(TRAINED_TRIAL, trial.number),
            params=values_of(trial),
            epoch=float(trial.user_attrs.get(BEST_EPOCH) or 0),
            values=tuple(trial.values),
            study_name=study.study_name,
            max_new_tokens=study.user_attrs.get(MAX_NEW_TOKENS),
        )

    def n_epochs(self, recipe: Recipe) -> float:
        """The epochs that its learning rate schedule was made for."""
        return self.params.get("num_epochs", recipe.training.num_epochs)

    def checkpoint(self, output_dir: Path) -> Path:
        """The weights of its best epoch that the search has kept.

        Args:
            output_dir: Output folder of the search.

        Raises:
            StudyError: They are not there.
        """
        folder = output_dir / "trials" / self.study_name / f"trial-{self.number}"
        found = sorted(folder.glob("checkpoint-*"))
        if len(found) != 1:
            raise StudyError(
                f"the search has kept no weights of trial {self.number}: {folder} holds "
                f"{len(found)} checkpoints, not one; run this where they are, or set "
                "search.keep_trials to 1 or more and search again, or retrain the trial with "
                "scripts/train.py"
            )
        return found[0]


def candidates_of(study: optuna.Study) -> list[Candidate]:
    """The complete trials of a study, the best in the first objective first."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    sign = -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1
    ranked = sorted(filter(counts, complete), key=lambda t: (sign * t.values[0], t.number))
    return [Candidate.of(trial, study) for trial in ranked]


def first_of_each(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The first candidate of each trained trial: a staged search has several decodings of one."""
    found: dict[int, Candidate] = {}
    for candidate in candidates:
        found.setdefault(candidate.number, candidate)
    return list(found.values())


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
