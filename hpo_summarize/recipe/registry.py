"""The samplers and pruners of Optuna by short names."""

from __future__ import annotations

from typing import Any

SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
    "nsgaii": "NSGAIISampler",
    "nsgaiii": "NSGAIIISampler",
    "brute_force": "BruteForceSampler",
}

# Conditional parameters need groups, and groups the multivariate form.
TPE_DEFAULTS = {"multivariate": True, "group": True}

# The share of a trial's epochs before which it is not pruned, unless the recipe says when. Over 400
# LoRA trainings the ranks after 36% of the epochs agreed with the final ones at 0.90 and less
# before; at 20% of a training one of the top five is lost (arXiv 2407.13906).
FIRST_SHARE = 1 / 3

PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "patient": "PatientPruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "threshold": "ThresholdPruner",
    "wilcoxon": "WilcoxonPruner",
}

# Packages that Optuna imports only when it draws, or asks, for the first time.
NEEDED_PACKAGES = {"cmaes": "cmaes", "gp": "scipy", "qmc": "scipy", "wilcoxon": "scipy"}


def optuna_class(kind: str, name: str) -> Any:
    """The class of a `sampler` or `pruner` by its short name."""
    import optuna

    if kind == "sampler":
        return getattr(optuna.samplers, SAMPLERS[name])
    return getattr(optuna.pruners, PRUNERS[name])
