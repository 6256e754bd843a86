"""The fingerprint of a study: what is searched, on which model and data."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import optuna

from hpo_summarize import __version__
from hpo_summarize.config.schema import LoraSection, ModelSection, Recipe
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.errors import StudyError
from hpo_summarize.study.user_attrs import FINGERPRINT

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
# Where a recipe may have keys or not. All other sections have all of their keys in a fingerprint.
_OPTIONAL_KEYS = ("lora.", "training.", "generation.", "space.", "model.from_config")
_SHOWN = 8  # Differences that a message lists.
_CONTENT = " (content)"  # Ends the key of a digest of texts.
_VERSION = "version"  # Of the program that made the study; no setting.


class _NotSet:
    def __repr__(self) -> str:
        return "not set"


_NOT_SET = _NotSet()


def fingerprint_of(recipe: Recipe, splits: Mapping[str, Dialogues]) -> dict[str, Any]:
    """The settings by `key.path` that every run of one study must share.

    Args:
        recipe: The content of its data counts, not their paths.
        splits: The rows of each split by its name; a row that moves from one to the other changes
            the fingerprint.
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
        digest.update(json.dumps(row).encode() + b"\n")  # Marks where each text and row ends.
    return digest.hexdigest()[:16]


def check_fingerprint(study: optuna.Study, fingerprint: Mapping[str, Any]) -> None:
    """Refuses to continue a study of another recipe; a new study gets the fingerprint.

    A study of an earlier version gets the keys that are new since, with the values that they had.

    Raises:
        StudyError: They differ; the message lists what it was and what it is now.
    """
    known = study.user_attrs.get(FINGERPRINT, {})
    if known and (lines := differences(known, fingerprint)):
        raise StudyError(
            f"the study '{study.study_name}' was made with another recipe{_by_version(known)}, and "
            "its trials cannot be compared with new ones:\n"
            + "\n".join(lines)
            + "\nGo back to the recipe of the study, or begin another one with --study_name NAME"
        )
    whole = {_VERSION: __version__, **fingerprint, **known}
    if whole != known:
        study.set_user_attr(FINGERPRINT, whole)


def _by_version(known: Mapping[str, Any]) -> str:
    version = known.get(_VERSION)
    if version == __version__:
        return ""
    return f" by {f'version {version}' if version else 'an earlier version'} of this program"


def check_result(study: optuna.Study, recipe: Recipe) -> None:
    """Refuses to make a model with another recipe than the study's, which its values do not fit.

    The texts may differ, and how summaries are scored.

    Args:
        study: Is left as it is; one without a fingerprint is accepted.
        recipe: With `max_new_tokens` as a number.

    Raises:
        StudyError: They differ; the message lists what it was and what it is now.
    """
    known = study.user_attrs.get(FINGERPRINT)
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


def _of_the_model(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in fingerprint.items()
        if key.partition(".")[0] in _MODEL_SECTIONS or key in _MODEL_DATA_KEYS
    }


def differences(known: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs, the first eight of them; empty if none does.

    An earlier version may have recorded other keys. A key that is new since counts as its default,
    and one that no longer exists does not count.

    Args:
        known: The recorded fingerprint of a study, or a part of it.
        fingerprint: That of the present recipe.
    """
    defaults = _defaults(has_lora=known.get("lora", "") is not None)
    changed = []
    for key in sorted(known.keys() | fingerprint.keys()):
        now = fingerprint.get(key, _NOT_SET)
        was = known.get(key, defaults.get(key, _NOT_SET))
        if key.startswith("space.") and key not in known and f"{_parameter(key)}.type" in known:
            was = False  # Default of the options of a parameter.
        exists = key in fingerprint or key.startswith(_OPTIONAL_KEYS) or key.endswith(_CONTENT)
        if was != now and exists and not _is_neutral(key):
            changed.append(f"  {key}: was {was!r}, now {now!r}")
    more = len(changed) - _SHOWN
    return changed[:_SHOWN] + ([f"  and {more} more"] if more > 0 else [])


@functools.cache
def _defaults(has_lora: bool) -> dict[str, Any]:
    """The defaults of all keys that have one, as a fingerprint has them."""
    lora = LoraSection() if has_lora else None
    recipe = Recipe(model=ModelSection(name="-"), lora=lora, output_dir="-")
    return {key: value for key, value in _settings(recipe).items() if key != "model.name"}


def _parameter(key: str) -> str:
    """`space.NAME` of a key `space.NAME.OPTION`."""
    return ".".join(key.split(".")[:2])


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
