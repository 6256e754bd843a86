"""The samplers and pruners of Optuna by short names, and the rules for their arguments."""

from __future__ import annotations

import importlib.util
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from hpo_summarize.config.fields import is_number, type_problem
from hpo_summarize.config.schema import SearchSection
from hpo_summarize.config.settings import possible_values
from hpo_summarize.errors import Problem, did_you_mean

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


# The types of Optuna's arguments that YAML can write, as its signatures spell them.
_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
    "int | None": int | None,
    "float | None": float | None,
    "bool | None": bool | None,
    "str | None": str | None,
    "str | int": str | int,
    "dict[str, Any] | None": dict[str, Any] | None,
}
# Limits that Optuna itself meets only in the middle of a study.
_AT_LEAST = {"n_ei_candidates": 1, "n_startup_trials": 0, "min_resource": 1, "max_resource": 1}


def optuna_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Every argument of the sampler and the pruner that Optuna does not know or refuses."""
    search = parts.get("search", {})
    for section in ("sampler", "pruner"):
        given = search.get(section)
        if isinstance(given, Mapping):
            default = SearchSection.model_fields[section].default.name
            yield from _object_problems(section, f"search.{section}", {"name": default, **given})
    yield from _sampler_limits(parts)
    yield from _hyperband_problems(parts)


def _object_problems(section: str, where: str, given: Mapping[str, Any]) -> Iterator[Problem]:
    name, registry = given["name"], SAMPLERS if section == "sampler" else PRUNERS
    if not isinstance(name, str):
        return  # The section itself reports it.
    if name not in registry:
        nearest = did_you_mean(name, registry)
        known = f"must be one of {', '.join(sorted(registry))}"
        yield Problem(f"{where}.name", f"{known}, got {name!r}{nearest}")
        return
    package = NEEDED_PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        message = f"'{name}' needs the package {package}, which is not there"
        yield Problem(f"{where}.name", f"{message}; pip install 'hpo_summarize[samplers]'")
        return
    own = type(SearchSection.model_fields[section].default).model_fields
    arguments = {k: v for k, v in given.items() if k not in own and isinstance(k, str)}
    if name == "patient":
        yield from _wrapped_problems(f"{where}.wrapped", arguments.pop("wrapped", None))
    found = list(_argument_problems(where, section, name, arguments))
    yield from found or _refusals(where, section, name, arguments)


def _wrapped_problems(where: str, wrapped: Any) -> Iterator[Problem]:
    if isinstance(wrapped, Mapping) and isinstance(wrapped.get("name"), str):
        yield from _object_problems("pruner", where, wrapped)
    elif wrapped is not None:
        yield Problem(
            where, f"must be a pruner, such as {{name: median}}, got {wrapped!r}; or leave it out"
        )


def _argument_problems(
    where: str, section: str, name: str, arguments: Mapping[str, Any]
) -> Iterator[Problem]:
    accepted = inspect.signature(optuna_class(section, name)).parameters
    for key, value in arguments.items():
        if key not in accepted:
            nearest = did_you_mean(key, accepted)
            yield Problem(
                f"{where}.{key}", f"'{name}' has no such argument (value {value!r}){nearest}"
            )
            continue
        annotation = accepted[key].annotation
        kind = _TYPES.get(annotation, annotation) if isinstance(annotation, str) else annotation
        if isinstance(kind, str) and value is not None:
            yield Problem(
                f"{where}.{key}",
                f"takes a Python object, got {value!r}; leave it out of the recipe",
            )
        elif not isinstance(kind, str) and (message := type_problem(value, kind)):
            yield Problem(f"{where}.{key}", message)
        elif isinstance(value, int) and value < _AT_LEAST.get(key, value):
            yield Problem(f"{where}.{key}", f"must be at least {_AT_LEAST[key]}, got {value}")
    for key, parameter in accepted.items():
        # The recipe gives the pruner that `patient` wraps under another name, and may leave it out.
        required = parameter.default is parameter.empty and key != "wrapped_pruner"
        if required and key not in arguments:
            yield Problem(f"{where}.{key}", f"'{name}' needs this argument; add it")


def _refusals(
    where: str, section: str, name: str, arguments: Mapping[str, Any]
) -> Iterator[Problem]:
    """Optuna's own checks of the values, which it makes when the object is made."""
    defaults: dict[str, Any] = TPE_DEFAULTS if name == "tpe" else {}
    if name == "patient":
        defaults = {"wrapped_pruner": None}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optuna_class(section, name)(**{**defaults, **arguments})
    except Exception as error:  # Optuna raises ValueError, TypeError, ImportError and others.
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        yield Problem(
            where,
            f"Optuna refuses {dict(arguments)!r} for '{name}' ({first_line}); mend these arguments",
        )


def _sampler_limits(parts: Mapping[str, Any]) -> Iterator[Problem]:
    search = parts.get("search", {})
    sampler = search.get("sampler")
    name = sampler.get("name") if isinstance(sampler, Mapping) else None
    if name == "cmaes":
        yield from _cmaes_problems(search)
    if name == "brute_force" and search.get("warm_start") is not None:
        message = (
            "'brute_force' would take the earlier trials for tried, and never call one the best"
        )
        yield Problem("search.warm_start", f"{message}; leave it out, or take another sampler")
    for key, parameter in parts.get("space", {}).items():
        is_continuous = isinstance(parameter, Mapping) and parameter.get("type") == "float"
        if name == "brute_force" and is_continuous and parameter.get("step") is None:
            message = "the sampler 'brute_force' tries every value, and this range is continuous"
            yield Problem(f"space.{key}", f"{message}; give it a step, or choices")


def _cmaes_problems(search: Mapping[str, Any]) -> Iterator[Problem]:
    objective = search.get("objective")
    if isinstance(objective, list) and len(objective) > 1:
        message = f"'cmaes' takes one objective, got {objective!r}; use tpe or nsgaii"
        yield Problem("search.sampler.name", message)


def _hyperband_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """A hyperband of Optuna whose `max_resource` lies below its `min_resource` prunes nothing."""
    where, pruner = "search.pruner", parts.get("search", {}).get("pruner")
    if isinstance(pruner, Mapping) and pruner.get("name") == "patient":
        where, pruner = f"{where}.wrapped", pruner.get("wrapped")
    if not isinstance(pruner, Mapping) or pruner.get("name") != "hyperband":
        return
    epochs = [value for value in possible_values("num_epochs", parts) if is_number(value)]
    longest = max(epochs, default=1)
    most = pruner.get("max_resource", math.ceil(longest))
    least = pruner.get("min_resource", math.ceil(longest * FIRST_SHARE))
    if isinstance(most, int) and isinstance(least, int) and most < least:
        yield Problem(
            where,
            f"max_resource (by default the epochs of the longest training) must be at least "
            f"min_resource (by default a third of them), got {most} and {least}; mend one of them",
        )
