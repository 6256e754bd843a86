"""Pruners by their short names, and the epoch from which they may end a trial."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

from optuna.exceptions import ExperimentalWarning
from optuna.pruners import BasePruner

from hpo_summarize.recipe import PrunerSection
from hpo_summarize.recipe.registry import FIRST_SHARE, optuna_class

# The arguments by which a recipe says itself when pruning begins.
_BEGINNINGS = ("n_warmup_steps", "min_resource", "min_early_stopping_rate", "n_startup_steps")


def prune_after(section: PrunerSection | None) -> float:
    """The share of a trial's epochs before which it is not pruned: a third, or 0.

    0 stands for a section that says itself when pruning begins, by one of `n_warmup_steps`,
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
        name: A key of `recipe.registry.PRUNERS`.
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
