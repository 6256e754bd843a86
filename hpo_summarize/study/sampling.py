"""Samplers and pruners by their short names."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, BruteForceSampler
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.recipe.registry import optuna_class


def build_sampler(
    name: str, seed: int | None, finished: int = 0, worker: int = 0, **arguments: Any
) -> BaseSampler:
    """A sampler by its short name; TPE models conditional parameters in groups.

    Args:
        name: A key of `recipe.registry.SAMPLERS`.
        seed: Seed of the study; None draws one.
        finished: Number of the first trial that is drawn. A resumed study that began with the same
            seed again would repeat its first draws.
        worker: Number of this worker, from 0.
        arguments: Further arguments of the sampler's class.
    """
    if name == "tpe":
        arguments = {"multivariate": True, "group": True, **arguments}
    if name != "brute_force" or seed is not None:
        arguments["seed"] = derive_seed(seed, worker, finished)
    with warnings.catch_warnings():
        # `group` has been marked experimental since Optuna 2.8, and conditions need it.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna_class("sampler", name)(**arguments)


class SeededAtFirstTrial(optuna.samplers.RandomSampler):
    """Stands in for a study's sampler until this process has its first trial.

    The storage gives a trial's number to one process only, so that no two of them ever draw the
    same, however many go on with a study at the same instant; a single one draws the same always.

    Args:
        study: Gets the sampler.
        build: Makes the sampler, with the number of the first trial as `finished`.
    """

    def __init__(self, study: optuna.Study, build: Callable[..., BaseSampler]) -> None:
        super().__init__()
        self._study = study
        self._build = build

    def preview(self) -> BaseSampler:
        """The sampler that will stand here, for a look at it."""
        return self._build()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Puts the sampler in its place; nothing has been drawn yet."""
        self._study.sampler = self._build(finished=trial.number)
        self._study.sampler.before_trial(study, trial)


def is_exhausted(study: optuna.Study) -> bool:
    """Whether every combination has been tried; only `brute_force` knows an end.

    Optuna's sampler finds this out after a trial of its own, and begins again from the front in
    the next run.
    """
    sampler = study.sampler
    if isinstance(sampler, SeededAtFirstTrial):
        sampler = sampler.preview()
    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state.is_finished() and trial.params]
    waiting = any(trial.state == TrialState.WAITING for trial in trials)
    if not isinstance(sampler, BruteForceSampler) or waiting or not ended:
        return False
    stopped: list[bool] = []
    probe = copy.copy(study)
    probe.stop = lambda: stopped.append(True)  # type: ignore[method-assign]
    sampler.after_trial(probe, ended[-1], ended[-1].state, ended[-1].values)
    return bool(stopped)


def derive_seed(seed: int | None, worker: int, finished: int) -> int | None:
    """A seed for the draws of one worker after so many trials; `seed` itself at the very start."""
    if seed is None or (worker == 0 and finished == 0):
        return seed
    return int(np.random.SeedSequence([seed, worker, finished]).generate_state(1)[0])


def build_pruner(name: str, **arguments: Any) -> optuna.pruners.BasePruner:
    """A pruner by its short name, a key of `recipe.registry.PRUNERS`."""
    return optuna_class("pruner", name)(**arguments)
