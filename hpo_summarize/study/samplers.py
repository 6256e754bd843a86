"""Samplers and pruners by their short names."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from hpo_summarize.config.optuna_rules import FIRST_SHARE, TPE_DEFAULTS, optuna_class
from hpo_summarize.config.schema import PrunerSection
from hpo_summarize.study.user_attrs import EXHAUSTED


def build_sampler(
    name: str, seed: int | None, finished: int = 0, worker: int = 0, **arguments: Any
) -> BaseSampler:
    """A sampler by its short name.

    All workers of a study draw from one quasi-random sequence (`qmc`), which is scrambled by the
    seed of the study; what is not part of it is drawn by each worker for itself.

    Args:
        name: A key of `config.optuna_rules.SAMPLERS`.
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
    """Records in the study that every combination was tried; Optuna only stops the current run.

    Without the mark the same command would try one of them once more. And Optuna 5.0 raises at a
    trial that was sampled in part only, by a worker that is running it or died.
    """

    @staticmethod
    def _populate_tree(tree: Any, trials: list[FrozenTrial], params: dict[str, Any]) -> None:
        """Leaves out trials that are sampled in part where another one has more of the values."""
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

        The parent would also stop at a trial that ended before anything was sampled.
        """
        if not trial.params:
            return
        study = getattr(study, "_study", study)  # Hyperband hands over its bracket of it.
        super().after_trial(study, trial, state, values)
        if study._stop_flag:
            study.set_user_attr(EXHAUSTED, True)


class SeededAtFirstTrial(optuna.samplers.RandomSampler):
    """Takes the place of a study's sampler until this process has its first trial.

    The storage gives a trial's number to one process only, so that no two of them draw the same,
    however many continue a study at the same instant. A single process is reproducible.

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


# The arguments by which a recipe sets when pruning begins.
_BEGINNINGS = ("n_warmup_steps", "min_resource", "min_early_stopping_rate", "n_startup_steps")


def prune_after(section: PrunerSection | None) -> float:
    """The share of a trial's epochs before which it is not pruned: a third, or 0.

    0 is for a section that sets when pruning begins, by one of `n_warmup_steps`,
    `min_resource`, `min_early_stopping_rate` and `n_startup_steps`, its own or those of `wrapped`.
    """
    given = section.settings() if section else {}
    wrapped = given.get("wrapped") or {}
    return 0.0 if any(key in given or key in wrapped for key in _BEGINNINGS) else FIRST_SHARE


def build_pruner(
    name: str,
    n_epochs: float | None = None,
    wrapped: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> BasePruner:
    """A pruner by its short name.

    Args:
        name: A key of `config.optuna_rules.PRUNERS`.
        n_epochs: Most epochs that a trial can have. A third of them is the default of
            `min_resource`: the rungs of successive halving and hyperband must be the same epochs
            for long and for short trials, and trials shorter than that are not pruned. All of them
            are the default of hyperband's `max_resource`, which Optuna takes from the first trial.
        wrapped: Name and arguments of the pruner that `patient` holds back; None: it ends every
            trial that gets no better.
        arguments: Further arguments of the pruner's class.
    """
    if name == "patient":
        inner = build_pruner(**wrapped, n_epochs=n_epochs) if wrapped else None
        arguments["wrapped_pruner"] = inner
    if name in ("successive_halving", "hyperband") and n_epochs:
        arguments.setdefault("min_resource", math.ceil(n_epochs * FIRST_SHARE))
    if name == "hyperband" and n_epochs:
        arguments.setdefault("max_resource", math.ceil(n_epochs))
    with warnings.catch_warnings():
        # `patient` and `wilcoxon` have been marked experimental since Optuna 2.8 and 3.6.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return optuna_class("pruner", name)(**arguments)
