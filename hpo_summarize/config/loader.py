"""From a YAML file, overrides or a mapping to a checked `Recipe`."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, Event

from hpo_summarize.config.messages import DEEPEST, TOO_DEEP
from hpo_summarize.config.parameters import WORDS_OF_LORA_KEYS
from hpo_summarize.config.schema import SECTIONS, Recipe
from hpo_summarize.config.validation import CONFLICTS, validate
from hpo_summarize.errors import Problem, RecipeError, did_you_mean
from hpo_summarize.redact import redact_url, remember_secrets

DEBUG_SETTINGS: dict[str, Any] = {
    "data.max_rows": 32,
    "training.num_epochs": 1,
    "search.n_trials": 2,
    "search.staged": {"n_models": 2, "n_trials": 2},
    "search.storage": None,
    "search.baselines": [],
    "search.warm_start": None,
    "search.warm_start_study": None,
}


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    debug: bool = False,
    settings: Mapping[str, Any] | None = None,
    needs_data: bool = True,
) -> Recipe:
    """Reads and checks a recipe.

    Args:
        path: YAML file (YAML 1.2: `1e-6` is a number, `no` is text, `012` is twelve).
        overrides: `key.path=value` items, split at the first `=`; the value is YAML.
            `space.NAME=null` takes a parameter out of the search, and the fixed value of the recipe
            is used.
        debug: Shrink the run to 2 trials of 1 epoch on 32 dialogues, in a folder `debug` of the
            output folder; for the rest it takes the same way as a full one. What `overrides` and
            `settings` ask for holds in its place.
        settings: Values by `key.path` that are not to be read as YAML; they come last.
        needs_data: False where data sets are given in place of the section `data`.

    Returns:
        The recipe; `search.study_name` is the name of the file where nothing else gives one.

    Raises:
        RecipeError: Lists everything that is wrong with the file and the overrides.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # Not there; not UTF-8, or not even a path.
        reason = getattr(error, "strerror", None) or str(error)
        message = f"the recipe cannot be read ({reason}); give the path of a YAML file"
        raise RecipeError([Problem(str(path), message)]) from None
    remember_secrets(text)
    content = dict(_require_mapping(_read_yaml(text, str(path)), str(path)))
    content = _shrunk(content) if debug else content
    problems = [problem for item in overrides if (problem := _override(content, item))]
    for key, value in (settings or {}).items():
        _set(content, key.split("."), value)
    if isinstance(search := content.setdefault("search", {}), dict):
        if search.get("study_name") is None:
            search["study_name"] = slug(path.stem)
    if debug:
        problems += _separate(content)
    return parse_recipe(content, str(path), problems, needs_data)


def parse_recipe(
    content: Mapping[str, Any],
    source: str = "recipe",
    problems: Sequence[Problem] = (),
    needs_data: bool = True,
) -> Recipe:
    """Checks the content of a recipe; see `load_recipe`.

    Args:
        content: The sections as plain dictionaries, lists and scalars. A parameter of the space
            that is null is not searched.
        source: What to call the recipe in an error.
        problems: Problems found before, to be listed with the others.
        needs_data: See `load_recipe`.
    """
    content = dict(_require_mapping(content, source))
    if isinstance(space := content.get("space"), Mapping):
        content["space"] = {name: given for name, given in space.items() if given is not None}
    recipe, found = validate(content, needs_data)
    if not any(problem.message == TOO_DEEP for problem in found):
        remember_secrets(content)
    if problems or found or recipe is None:
        raise RecipeError([*problems, *found], source)
    return recipe


def _shrunk(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with `DEBUG_SETTINGS`, and with no other number of epochs to search."""
    shrunk = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()
    }
    for key, value in DEBUG_SETTINGS.items():
        _set(shrunk, key.split("."), value)
    if isinstance(space := shrunk.get("space"), dict) and space.get("num_epochs") is not None:
        epochs = DEBUG_SETTINGS["training.num_epochs"]
        space["num_epochs"] = {"type": "categorical", "choices": [epochs]}
    return shrunk


def _separate(content: dict[str, Any]) -> Iterator[Problem]:
    """Gives a debug run a folder of its own; its study must not be in a storage of others."""
    if isinstance(folder := content.get("output_dir"), str):
        content["output_dir"] = f"{folder}/debug"
    search = content.get("search")
    url = search.get("storage") if isinstance(search, dict) else None
    if url is not None:
        rule = f"a debug run keeps its study in its own folder, got {redact_url(str(url))!r}"
        yield Problem("search.storage", f"{rule}; leave it out, or leave out --debug")


def dump_recipe(recipe: Recipe, published: bool = False) -> str:
    """The recipe as YAML, with every default that acts written out; it can be loaded again.

    Passwords of storages are left out.

    Args:
        recipe: The recipe.
        published: Leave out where this machine keeps things: of folders and absolute paths only the
            last part is written, and no storage.
    """
    content = recipe.model_dump()
    if published:
        content = last_part(content)
        content["search"] |= {"storage": None, "warm_start": None}
    # Not in the text: a long URL with a blank in it is folded there.
    for key in ("storage", "warm_start"):
        content["search"][key] = (url := content["search"][key]) and redact_url(url)
    for section, key in _idle_defaults(recipe):
        del content[section][key]
    buffer = io.StringIO()
    writer = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.allow_unicode = True
    writer.dump(content, buffer)
    return buffer.getvalue()


def _idle_defaults(recipe: Recipe) -> list[tuple[str, str]]:
    """Defaults that the search space, or another key of the recipe, puts out of action.

    Written out, each would look like a value that the user fixed beside it.
    """
    decided = {*recipe.space, *recipe.training.settings()}
    replaced = {first for first, second, _ in CONFLICTS if second in decided}
    if "per_device_train_batch_size" in recipe.space:
        replaced.add("batch_size")
    idle = []
    for section, model in SECTIONS.items():
        given = getattr(recipe, section)
        for key in model.model_fields.keys() - given.settings() if given else ():
            if WORDS_OF_LORA_KEYS.get(key, key) in recipe.space or key in replaced:
                idle.append((section, key))
    return idle


def last_part(value: Any) -> Any:
    """A value in which each absolute path and each folder is replaced by its last part."""
    if isinstance(value, Mapping):
        return {key: last_part(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [last_part(inner) for inner in value]
    if not isinstance(value, str) or "\0" in value:
        return value
    path = Path(value)
    is_local = path.is_absolute() or value.startswith("~") or (value != "" and path.is_dir())
    return path.absolute().name if is_local else value


def _require_mapping(content: Any, source: str) -> Mapping[str, Any]:
    if isinstance(content, Mapping):
        return content
    found = "is empty" if content is None else f"holds {content!r}"
    problem = Problem(source, f"a recipe is a mapping of sections, and this one {found}")
    raise RecipeError([problem], source)


def slug(name: str) -> str:
    """A study name out of a file name: letters, digits, `.`, `_` and `-`, at most 64."""
    slug = re.sub(r"[^A-Za-z0-9._-]", "-", name)[:64]
    return slug if slug.strip(".") else "study"


def _read_yaml(text: str, source: str) -> Any:
    reader = YAML(typ="safe", pure=True)
    try:
        for message in _refused_events(reader.parse(text)):
            raise RecipeError([Problem(source, message)], source)
        content = YAML(typ="safe", pure=True).load(text)
        # Thousands of digits or levels fail here already, and not in a message that shows them.
        return content if repr(content) else None
    except (YAMLError, ValueError, LookupError, RecursionError) as error:
        # A value that does not fit its tag, such as `!!int x` or a 45th of May, is no YAMLError.
        raise RecipeError([Problem(source, _yaml_message(error))], source) from None


def _refused_events(events: Iterable[Event]) -> Iterator[str]:
    """What a recipe must not contain; nesting is found before ruamel takes a minute over it."""
    depth = 0
    for event in events:
        line = event.start_mark.line + 1
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST + 1:
            yield f"line {line} {TOO_DEEP}"
        if isinstance(event, AliasEvent):
            yield (
                f"line {line} uses an alias (*{event.anchor}); write the value out, "
                "or put text that begins with * in quotes"
            )


def _yaml_message(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"not valid YAML{where}: {what}"


def _override(content: dict[str, Any], item: str) -> Problem | None:
    key, equals, text = item.partition("=")
    if not equals or not key or not all(key.split(".")):
        return Problem(item, "an override has the form key.path=value, as in search.n_trials=10")
    try:
        value = _read_yaml(text, key) if text.strip() else None
    except RecipeError as error:
        return error.problems[0]
    section, _, name = key.partition(".")
    searched = content.get(section)
    if section == "space" and value is None and isinstance(searched, Mapping):
        if name and "." not in name and name not in searched:
            rule = "there is no such parameter to take out of the space"
            return Problem(key, f"{rule} (value None){did_you_mean(name, searched, 'drop it')}")
    if not _set(content, key.split("."), value):
        message = f"the override {item!r} goes through a key that holds no mapping"
        return Problem(key, f"{message}; override that key itself")
    return None


def _set(content: dict[str, Any], path: Sequence[str], value: Any) -> bool:
    *parents, last = path
    for parent in parents:
        if content.get(parent) is None:
            content[parent] = {}
        content = content[parent]
        if not isinstance(content, dict):
            return False
    content[last] = value
    return True


def as_recipe(config: Recipe | str | Path | Mapping[str, Any], needs_data: bool = True) -> Recipe:
    """The recipe in a file or a mapping, or the one that is given.

    Args:
        config: A recipe, the path of one, or its content.
        needs_data: Whether the section `data` is required.

    Raises:
        RecipeError: It is wrong.
    """
    if isinstance(config, Recipe):
        return config
    if isinstance(config, str | Path):
        return load_recipe(config, needs_data=needs_data)
    return parse_recipe(config, needs_data=needs_data)


def with_settings(
    recipe: Recipe,
    search: Mapping[str, Any],
    output_dir: str | Path | None = None,
    needs_data: bool = True,
) -> Recipe:
    """The recipe with other values in place of its own, checked again.

    Args:
        recipe: Left as it is.
        search: Keys of the section `search`; None keeps the recipe's value.
        output_dir: Output folder; None keeps the recipe's.
        needs_data: Whether the section `data` is required.

    Raises:
        RecipeError: A value is wrong.
    """
    content = recipe.model_dump(exclude_unset=True)
    content.setdefault("search", {}).update({k: v for k, v in search.items() if v is not None})
    if output_dir is not None:
        content["output_dir"] = str(output_dir)
    return parse_recipe(content, needs_data=needs_data)
