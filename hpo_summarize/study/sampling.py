"""Samplers and pruners by their short names."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import optuna

from hpo_summarize.recipe.registry import optuna_class


def build_sampler(
    name: str, seed: int | None, finished: int = 0, worker: int = 0, **arguments: Any
) -> optuna.samplers.BaseSampler:
    """A sampler by its short name; TPE models conditional parameters in groups.

    Args:
        name: A key of `recipe.registry.SAMPLERS`.
        seed: Seed of the study; None draws one.
        finished: Trials that the study holds already. A resumed study that began with the same
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


def derive_seed(seed: int | None, worker: int, finished: int) -> int | None:
    """A seed for the draws of one worker after so many trials; `seed` itself at the very start."""
    if seed is None or (worker == 0 and finished == 0):
        return seed
    return int(np.random.SeedSequence([seed, worker, finished]).generate_state(1)[0])


def build_pruner(name: str, **arguments: Any) -> optuna.pruners.BasePruner:
    """A pruner by its short name, a key of `recipe.registry.PRUNERS`."""
    return optuna_class("pruner", name)(**arguments)
