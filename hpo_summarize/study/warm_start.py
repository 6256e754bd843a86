"""Finished trials of an earlier study, from which sampler and pruner of a new one learn."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.config.parameters import LORA_KEYS, owner_of
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import StudyError, did_you_mean
from hpo_summarize.redact import redact_url
from hpo_summarize.study.fingerprint import differences
from hpo_summarize.study.location import file_of_url
from hpo_summarize.study.recovery import withdraw
from hpo_summarize.study.storage import build_storage, open_with_retries
from hpo_summarize.study.user_attrs import EARLIER, FAILURE, FINGERPRINT, WARM_START

Sample = Callable[[optuna.trial.BaseTrial], Mapping[str, Any]]


@dataclass(frozen=True)
class WarmStart:
    """Where the earlier trials are, and what they must share with the new ones.

    Attributes:
        storage: URL of the earlier study's storage.
        study_name: Name of the earlier study; None: the only one of the storage.
        fingerprint: Settings of the new study, see `fingerprint_of`.
        searched: Those of them that the search space decides, and not the recipe.
        sample: Function that samples the new space.
    """

    storage: str
    study_name: str | None
    fingerprint: Mapping[str, Any]
    searched: frozenset[str]
    sample: Sample

    @functools.cached_property
    def copies(self) -> list[FrozenTrial]:
        """Copies of the finished trials that fit.

        Complete and pruned trials are taken, failed ones are not: their reason may lie in the
        machine. The copies are known to sampler and pruner, but are not counted or called the best.

        Raises:
            StudyError: The earlier study cannot be read, was made with other settings, or has no
                trial that fits.
        """
        found = [copied for trial in self._finished if (copied := self._copy(trial)) is not None]
        if not found:
            raise StudyError(
                f"none of the {len(self._finished)} complete or pruned trials of the earlier study "
                f"'{self._study.study_name}' fits the search space (the same parameters, with "
                "values inside its ranges); widen the space, or leave search.warm_start out"
            )
        return found

    def add_to(self, study: optuna.Study) -> None:
        """Adds each copy once, also where other workers do so at the same time.

        A copy is added as a running trial, and gets its number from the storage. The first copy of
        a trial is then finished, any other one withdrawn, by whoever sees them: the worker that has
        added one may be gone.
        """
        note = {"storage": redact_url(self.storage), "study_name": self._study.study_name}
        n_taken = len(self.copies)
        counts = {"n_taken": n_taken, "n_left_out": len(self._finished) - n_taken}
        study.set_user_attr(WARM_START, {**note, **counts})
        trials = study.get_trials(deepcopy=False)
        for earlier in self.copies:
            if not _copies_of(earlier, trials):
                study.add_trial(_as_running(earlier))
            trials = study.get_trials(deepcopy=False)
            first, *others = _copies_of(earlier, trials)
            for other in others:
                withdraw(study, other)
            with suppress(UpdateFinishedTrialError):
                study._storage.set_trial_state_values(
                    first._trial_id, earlier.state, earlier.values
                )

    def check_begun(self, study: optuna.Study) -> None:
        """Refuses a study that was begun without these earlier trials.

        Raises:
            StudyError: It was begun without any, or with those of another study.
        """
        known = study.user_attrs.get(WARM_START)
        was = "none"
        if known is not None:
            same_name = self.study_name in (None, known["study_name"])
            if same_name and known["storage"] == redact_url(self.storage):
                return
            was = f"those of '{known['study_name']}' in {known['storage']}"
        raise StudyError(
            f"the study '{study.study_name}' has been begun with other earlier trials ({was}) than "
            f"search.warm_start names ({redact_url(self.storage)}), and takes them only when it is "
            "new; leave search.warm_start as it was, or begin another one with --study_name NAME"
        )

    @functools.cached_property
    def _study(self) -> optuna.Study:
        file = open_with_retries(self.storage, lambda: file_of_url(self.storage))
        if file is not None and not file.is_file():  # To open it would make an empty one.
            raise StudyError(
                f"search.warm_start: there is no file for {redact_url(self.storage)}, seen from "
                f"{Path.cwd()}; give the storage URL of an earlier study, or leave the key out"
            )
        storage = open_with_retries(self.storage, lambda: build_storage(self.storage))
        found = optuna.get_all_study_names(storage)
        name = found[0] if self.study_name is None and len(found) == 1 else self.study_name
        if name not in found:
            nearest = did_you_mean(name or "", found)
            which = f"no study '{name}'" if name else f"{len(found)} studies"
            raise StudyError(
                f"search.warm_start: {redact_url(self.storage)} holds {which} (there: "
                f"{', '.join(found) or 'none'}){nearest}; name one as search.warm_start_study"
            )
        study = optuna.load_study(study_name=name, storage=storage)
        self._check(study)
        return study

    @functools.cached_property
    def _finished(self) -> list[FrozenTrial]:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self._study.get_trials(deepcopy=False, states=states)
        return [trial for trial in trials if FAILURE not in trial.user_attrs]

    def _check(self, earlier: optuna.Study) -> None:
        known = earlier.user_attrs.get(FINGERPRINT)
        if known is None:
            raise StudyError(
                f"search.warm_start: the study '{earlier.study_name}' does not say what it was "
                "made with, so its values may not be comparable; name a study of this program"
            )
        kept = {k: v for k, v in known.items() if self._must_agree(k)}
        wanted = {k: v for k, v in self.fingerprint.items() if self._must_agree(k)}
        if lines := differences(kept, wanted):
            raise StudyError(
                f"search.warm_start: the study '{earlier.study_name}' was made with another "
                "recipe, and its values cannot be compared with new ones:\n"
                + "\n".join(lines)
                + "\nOnly the search space may differ; go back to that recipe, or leave "
                "search.warm_start out"
            )

    def _must_agree(self, key: str) -> bool:
        return not key.startswith("space.") and key not in self.searched

    def _copy(self, trial: FrozenTrial) -> FrozenTrial | None:
        """The trial with the distributions of the new space; None if it does not fit there."""
        fixed, name = optuna.trial.FixedTrial(trial.params), self._study.study_name
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Of a value outside, which the copy refuses.
                values = self.sample(fixed)
            fitting = optuna.trial.create_trial(
                state=trial.state,
                values=trial.values,
                params=trial.params,
                distributions=fixed.distributions,
                intermediate_values=trial.intermediate_values,
                user_attrs={EARLIER: {"study_name": name, "number": trial.number}},
            )
        except ValueError:  # A parameter too few or too many, or a value outside of its range.
            return None
        return fitting if values.keys() == trial.params.keys() else None


def _copies_of(earlier: FrozenTrial, trials: list[FrozenTrial]) -> list[FrozenTrial]:
    origin = earlier.user_attrs[EARLIER]
    return [trial for trial in trials if trial.user_attrs.get(EARLIER) == origin]


def _as_running(earlier: FrozenTrial) -> FrozenTrial:
    running = copy.copy(earlier)
    running.state, running.values, running.datetime_complete = TrialState.RUNNING, None, None
    return running


def warm_start_of(
    recipe: Recipe, fingerprint: Mapping[str, Any], sample: Sample
) -> WarmStart | None:
    """The earlier trials that a recipe asks for; None if it asks for none.

    Args:
        recipe: The checked recipe.
        fingerprint: Settings of the new study, see `fingerprint_of`.
        sample: Function that samples its space.
    """
    search = recipe.search
    if search.warm_start is None:
        return None
    searched = {f"{owner_of(n)}.{LORA_KEYS.get(n, n)}" for n in recipe.space}
    return WarmStart(
        search.warm_start, search.warm_start_study, fingerprint, frozenset(searched), sample
    )
