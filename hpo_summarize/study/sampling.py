"""Samplers by their short names."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.attributes import EXHAUSTED
from hpo_summarize.recipe.registry import TPE_DEFAULTS, optuna_class


def build_sampler(
    name: str, seed: int | None, finished: int = 0, worker: int = 0, **arguments: Any
) -> BaseSampler:
    """A sampler by its short name.

    All workers of a study draw from one quasi-random sequence (`qmc`), which is scrambled by the
    seed of the study; what is not part of it is drawn by each worker for itself.

    Args:
        name: A key of `recipe.registry.SAMPLERS`.
        seed: Seed of the study; None draws one.
        finished: Number of the first trial that is drawn. A resumed study that began with the same
            seed again would repeat its first draws.
        worker: Number of this worker, from 0.
        arguments: Further arguments of the sampler's class.
    """
    if name == "tpe":
        arguments = {**TPE_DEFAULTS, **arguments}
    own_seed = derive_seed(seed, worker, finished)
    if name == "qmc":
        arguments["seed"] = seed
        arguments["independent_sampler"] = optuna.samplers.RandomSampler(seed=own_seed)
    elif name != "brute_force" or seed is not None:
        arguments["seed"] = own_seed
    made = MarkingBruteForceSampler if name == "brute_force" else optuna_class("sampler", name)
    with warnings.catch_warnings():
        # `group` has been marked experimental since Optuna 2.8, and conditions need it.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return made(**arguments)


class MarkingBruteForceSampler(optuna.samplers.BruteForceSampler):
    """Writes into the study that every combination was tried; Optuna only stops the run at hand.

    Without the mark the same command again would try one of them once more. And Optuna 5.0 raises
    at a trial whose worker died, or is at work, before all of it was sampled.
    """

    @staticmethod
    def _populate_tree(tree: Any, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        """Leaves out trials that are sampled in part, where another one has gone on from there."""
        for trial in sorted(trials, key=lambda trial: -len(trial.params)):
            if trial.params:
                with contextlib.suppress(ValueError):
                    optuna.samplers.BruteForceSampler._populate_tree(tree, [trial], params)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Marks the study where the parent stops it.

        A trial that ended before anything was sampled says nothing; the parent would stop there.
        """
        if not trial.params:
            return
        study = getattr(study, "_study", study)  # Hyperband hands over its bracket of it.
        super().after_trial(study, trial, state, values)
        if study._stop_flag:
            study.set_user_attr(EXHAUSTED, True)


class SeededAtFirstTrial(optuna.samplers.RandomSampler):
    """Stands in for a study's sampler until this process has its first trial.

    The storage gives a trial's number to one process only, so that no two of them ever draw the
    same, however many go on with a study at the same instant; a single one draws the same always.

    Args:
        study: The study that gets the sampler.
        build: Function that makes the sampler, with the number of the first trial as `finished`.
    """

    def __init__(self, study: optuna.Study, build: Callable[..., BaseSampler]) -> None:
        super().__init__()
        self._study = study
        self._build = build

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Puts the sampler in its place; nothing has been drawn yet."""
        self._study.sampler = self._build(finished=trial.number)
        self._study.sampler.before_trial(study, trial)


def derive_seed(seed: int | None, worker: int, finished: int) -> int | None:
    """A seed for the draws of one worker after so many trials; `seed` itself at the very start."""
    if seed is None or (worker == 0 and finished == 0):
        return seed
    return int(np.random.SeedSequence([seed, worker, finished]).generate_state(1)[0])
