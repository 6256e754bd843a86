"""What makes two runs parts of one study: what is searched, on which model and data."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import optuna
from pydantic.fields import FieldInfo

from hpo_summarize import __version__
from hpo_summarize.config.parameters import WORDS_OF_LORA_KEYS, owner_of
from hpo_summarize.config.schema import SECTIONS, LoraSection, ModelSection, Recipe
from hpo_summarize.config.space import PARAMETER_TYPES
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.errors import StudyError
from hpo_summarize.study.user_attrs import IDENTITY

_SECTIONS = ("model", "lora", "training", "generation", "rouge", "space")
# The seed draws the rows of the epoch evaluation, and orders those of the decoding stage.
_DATA_KEYS = ("max_dialogue_tokens", "max_summary_tokens", "seed", "special_tokens")
# Training arguments that change the speed or the bookkeeping, and not what is learned.
_NEUTRAL = (
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "disable_",
    "log_level",
    "logging_",
    "per_device_",
    "report_to",
    "save_on_each_node",
    "save_total_limit",
)
# What decides the weights and the decoding of a trial, without the texts and how it was scored.
_MODEL_SECTIONS = ("model", "lora", "training", "generation", "space")
_MODEL_DATA_KEYS = ("data.max_dialogue_tokens", "data.max_summary_tokens", "data.special_tokens")
_SHOWN = 8  # Differences that a message lists.
_CONTENT = " (content)"  # Ends the key of a digest of texts.
_VERSION = "version"  # Of the program that recorded an identity; no setting.


class _NotSet:
    def __repr__(self) -> str:
        return "not set"


_NOT_SET = _NotSet()


def fingerprint_of(recipe: Recipe, splits: Mapping[str, Dialogues]) -> dict[str, Any]:
    """The settings by `key.path` that every run of one study must share.

    Args:
        recipe: Where its data lie does not count, but what they say does.
        splits: The rows of each split by its name, each a part of the identity of its own: a row
            that moves from one to the other changes both.
    """
    return _settings(recipe) | {f"data.{name}{_CONTENT}": _digest(r) for name, r in splits.items()}


def _settings(recipe: Recipe) -> dict[str, Any]:
    content = recipe.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for section in _SECTIONS:
        flat |= _flatten(section, content[section])
    flat |= {f"data.{key}": content["data"][key] for key in _DATA_KEYS}
    flat |= {
        f"search.{key}": content["search"][key] for key in ("objective", "direction", "decode")
    }
    flat |= _flatten("search.epoch_eval", content["search"]["epoch_eval"])
    return {key: value for key, value in flat.items() if not _is_neutral(key)}


def _digest(split: Dialogues) -> str:
    digest = hashlib.sha256()
    for row in zip(split.dialogues, split.references, strict=True):
        digest.update(json.dumps(row).encode() + b"\n")  # Tells where each text and row ends.
    return digest.hexdigest()[:16]


def check_fingerprint(study: optuna.Study, identity: Mapping[str, Any]) -> None:
    """Refuses to go on with a study that another recipe made; a new study takes the identity.

    A study of an earlier version takes the keys that are new since, with the values that they had.

    Raises:
        StudyError: They differ; the message lists what it was and what it is now.
    """
    known = study.user_attrs.get(IDENTITY, {})
    if known and (lines := differences(known, identity)):
        raise StudyError(
            f"the study '{study.study_name}' was made with another recipe{_by_version(known)}, and "
            "its trials cannot be compared with new ones:\n"
            + "\n".join(lines)
            + "\nGo back to the recipe of the study, or begin another one with --study_name NAME"
        )
    whole = {_VERSION: __version__, **identity, **known}
    if whole != known:
        study.set_user_attr(IDENTITY, whole)


def _by_version(known: Mapping[str, Any]) -> str:
    version = known.get(_VERSION)
    if version == __version__:
        return ""
    return f" by {f'version {version}' if version else 'an earlier version'} of this program"


def check_result(study: optuna.Study, recipe: Recipe) -> None:
    """Refuses to make a model with another recipe than the study's, whose values fit that alone.

    The texts may differ, and how summaries are scored.

    Args:
        study: Is left as it is; one without an identity is taken.
        recipe: With `max_new_tokens` as a number.

    Raises:
        StudyError: They differ; the message lists what it was and what it is now.
    """
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        return
    lines = differences(_of_the_model(known), _of_the_model(fingerprint_of(recipe, {})))
    if lines:
        raise StudyError(
            f"the study '{study.study_name}' was made with another recipe{_by_version(known)}, and "
            "its result is one of that recipe alone:\n"
            + "\n".join(lines)
            + "\nUse the recipe that the search ran "
            "with: the recipe.yaml of its output folder, or the same changes on the command line"
        )


def _of_the_model(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in identity.items()
        if key.partition(".")[0] in _MODEL_SECTIONS or key in _MODEL_DATA_KEYS
    }


def differences(known: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs, the first eight of them; empty if none does.

    An earlier version may have recorded other keys. One that did not exist then counts as its
    default, and one that does not exist any more does not count.

    Args:
        known: The recorded identity of a study, or a part of it.
        identity: That of the present recipe.
    """
    changed = []
    for key in sorted(known.keys() | identity.keys()):
        if key not in identity and not _may_be_left_out(key, known):
            continue
        was = known[key] if key in known else _default_of(key, known)
        now = identity.get(key, _NOT_SET)
        if was != now:
            changed.append(f"  {key}: was {was!r}, now {now!r}")
    more = len(changed) - _SHOWN
    return changed[:_SHOWN] + ([f"  and {more} more"] if more > 0 else [])


def _default_of(key: str, known: Mapping[str, Any]) -> Any:
    """The default of a key that is not recorded; `_NOT_SET` if it has none, or nor has its section.

    A recipe without adapters has the key `lora` with null, and none of the section.
    """
    section, _, name = key.partition(".")
    if known.get(section, _NOT_SET) is None:
        return _NOT_SET
    if section != "space":
        return _defaults().get(key, _NOT_SET)
    parameter, _, field = name.partition(".")
    found = _fields_of(parameter, known).get(field)
    if found is None or found.is_required():
        return _NOT_SET
    return found.get_default(call_default_factory=True)


def _fields_of(parameter: str, known: Mapping[str, Any]) -> dict[str, FieldInfo]:
    """The keys that a searched parameter can have, by the kind of it that is recorded."""
    kind = known.get(f"space.{parameter}.type")
    return PARAMETER_TYPES[kind].model_fields if kind in PARAMETER_TYPES else {}


@functools.cache
def _defaults() -> dict[str, Any]:
    """The defaults of all keys that have one, as an identity has them."""
    recipe = Recipe(model=ModelSection(name="-"), lora=LoraSection(), output_dir="-")
    return {key: value for key, value in _settings(recipe).items() if key != "model.name"}


def _may_be_left_out(key: str, known: Mapping[str, Any]) -> bool:
    """Whether a recorded key exists still, although a recipe has none that it does not give.

    Most sections have all their keys in every identity. Only fields of Hugging Face's classes and
    what is searched are there where they are given.
    """
    section, _, name = key.partition(".")
    first, _, rest = name.partition(".")
    if section == "space":
        return rest.partition(".")[0] in _fields_of(first, known)
    if section in SECTIONS:
        word = WORDS_OF_LORA_KEYS.get(first, first) if section == "lora" else first
        return not _is_neutral(key) and owner_of(word) is not None
    return key.startswith("model.from_config") or key.endswith(_CONTENT)


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {prefix: value}
    return {
        key: inner
        for name, part in value.items()
        for key, inner in _flatten(f"{prefix}.{name}", part).items()
    }


def _is_neutral(key: str) -> bool:
    section, _, name = key.partition(".")
    return section == "training" and name.startswith(_NEUTRAL)
