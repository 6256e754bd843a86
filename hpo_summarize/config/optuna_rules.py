"""What Optuna would refuse: samplers and pruners, constructed by short names, and the storage."""

from __future__ import annotations

import importlib.util
import inspect
import math
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import sqlalchemy
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from hpo_summarize.config.messages import explain
from hpo_summarize.config.schema import PrunerSection, Recipe, SamplerSection
from hpo_summarize.config.space import is_number
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

# The types of Optuna's arguments that YAML can write, as its signatures spell them.
_TYPES: dict[str, Any] = {
    f"{kind.__name__}{end}": kind | other
    for kind in (int, float, bool, str)
    for end, other in (("", kind), (" | None", None))
} | {"str | int": str | int, "dict[str, Any] | None": dict[str, Any] | None}
# Optuna checks these only in the middle of a study.
_BOUNDED: dict[str, Any] = {
    "n_ei_candidates": Annotated[int, Field(ge=1)],
    "n_startup_trials": Annotated[int, Field(ge=0)],
    "min_resource": Annotated[int, Field(ge=1)] | str,
    "max_resource": Annotated[int, Field(ge=1)] | str,
}


class _Wrapped(PrunerSection):
    name: str


def optuna_class(kind: str, name: str) -> Any:
    """The class of a `sampler` or `pruner` by its short name."""
    import optuna

    if kind == "sampler":
        return getattr(optuna.samplers, SAMPLERS[name])
    return getattr(optuna.pruners, PRUNERS[name])


def optuna_problems(recipe: Recipe) -> Iterator[Problem]:
    """What Optuna does not know or refuses of the section `search`."""
    search = recipe.search
    yield from _storage_problems(search.storage)
    yield from _object_problems("sampler", search.sampler, "search.sampler")
    if search.pruner is not None:
        yield from _object_problems("pruner", search.pruner, "search.pruner")
        yield from _hyperband_problems(recipe, search.pruner)
    name = search.sampler.name
    if name == "cmaes" and len(search.objectives) > 1:
        message = f"'cmaes' takes one objective, got {search.objective!r}; use tpe or nsgaii"
        yield Problem("search.sampler.name", message)
    if name == "brute_force" and search.warm_start is not None:
        rule = "'brute_force' would take the earlier trials for tried, and never call one the best"
        yield Problem("search.warm_start", f"{rule}; leave it out, or take another sampler")
    for key, parameter in recipe.space.items():
        if name == "brute_force" and parameter.type == "float" and parameter.step is None:
            rule = "the sampler 'brute_force' tries every value, and this range is continuous"
            yield Problem(f"space.{key}", f"{rule}; give it a step, or choices")


def _object_problems(
    kind: str, section: SamplerSection | PrunerSection, where: str
) -> Iterator[Problem]:
    name, registry = section.name, SAMPLERS if kind == "sampler" else PRUNERS
    package = NEEDED_PACKAGES.get(name)
    if name not in registry:
        rule = f"must be one of {', '.join(sorted(registry))}"
        yield Problem(f"{where}.name", f"{rule}, got {name!r}{did_you_mean(name, registry)}")
    elif package and importlib.util.find_spec(package) is None:
        rule = f"'{name}' needs the package {package}, which is not installed"
        yield Problem(f"{where}.name", f"{rule}; pip install 'hpo_summarize[samplers]'")
    else:
        yield from _argument_problems(kind, name, section.model_extra or {}, where)


def _argument_problems(
    kind: str, name: str, given: dict[str, Any], where: str
) -> Iterator[Problem]:
    """Types by the signature of the class; the values by constructing it."""
    model = _arguments(kind, name)
    try:
        model.model_validate(given)
    except ValidationError as error:
        for key, message in explain(error, given, model).items():
            yield Problem(f"{where}.{key}", message)
        return
    arguments: dict[str, Any] = {**(TPE_DEFAULTS if name == "tpe" else {}), **given}
    if name == "patient":
        wrapped = arguments.pop("wrapped", None)
        arguments["wrapped_pruner"] = None
        if wrapped is not None:
            yield from _object_problems("pruner", _Wrapped(**wrapped), f"{where}.wrapped")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optuna_class(kind, name)(**arguments)
    except Exception as error:  # ValueError, TypeError, ImportError and others.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = f"Optuna refuses {given!r} for '{name}' ({reason}); change these arguments"
        yield Problem(where, message)


def _arguments(kind: str, name: str) -> type[BaseModel]:
    """What a recipe can give to a sampler or pruner: what YAML can write of its signature."""
    fields: dict[str, Any] = {}
    for key, parameter in inspect.signature(optuna_class(kind, name)).parameters.items():
        written = parameter.annotation
        values = _TYPES.get(written) if isinstance(written, str) else written
        if values is not None and key != "seed":  # The section has the seed.
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[key] = (_BOUNDED.get(key, values), default)
    if name == "patient":
        fields.pop("wrapped_pruner", None)
        fields["wrapped"] = (_Wrapped | None, None)
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
    return create_model(name, __config__=config, **fields)


def _hyperband_problems(recipe: Recipe, pruner: PrunerSection) -> Iterator[Problem]:
    """A hyperband of Optuna whose `max_resource` lies below its `min_resource` prunes nothing."""
    given: Any = pruner.settings()
    if pruner.name == "patient" and isinstance(given.get("wrapped"), dict):
        given = given["wrapped"]
    longest = max(filter(is_number, recipe.possible_values("num_epochs")), default=1)
    most = given.get("max_resource", math.ceil(longest))
    least = given.get("min_resource", math.ceil(longest * FIRST_SHARE))
    is_hyperband = given.get("name") == "hyperband" and isinstance(most, int)
    if is_hyperband and isinstance(least, int) and most < least:
        where = "search.pruner" if given.get("name") == pruner.name else "search.pruner.wrapped"
        yield Problem(
            where,
            "max_resource (by default the epochs of the longest training) must be at least "
            f"min_resource (by default a third of them), got {most} and {least}; change one",
        )


def _storage_problems(url: str | None) -> Iterator[Problem]:
    """A URL that names no kind of storage, or one that is gone with the process."""
    if url and not url.startswith("journal://") and (reason := _wrong_url(url)):
        yield Problem(
            "search.storage",
            f"{reason}; write sqlite:///file.db, journal:///folder/file.log or "
            "postgresql+psycopg://user@host/database",
        )


def _wrong_url(url: str) -> str | None:
    """Says what is wrong without the URL itself: its password may stand anywhere in it."""
    try:
        parsed = sqlalchemy.make_url(url)
        backend = parsed.get_backend_name()
        parsed.get_dialect()
    except sqlalchemy.exc.NoSuchModuleError:
        return f"there is no kind of database called '{parsed.drivername}'"
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "this is no URL of a storage"
    except ImportError:
        return None  # The driver is not installed; opening the storage says how to get it.
    in_memory = parsed.database in (None, "", ":memory:") or parsed.query.get("mode") == "memory"
    if backend == "sqlite" and in_memory:
        return "a database in memory ends with the process, and nothing could resume from there"
    return None
