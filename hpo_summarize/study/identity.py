"""What makes two runs parts of one study: what is searched, on which model and data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import optuna

from hpo_summarize.attributes import IDENTITY
from hpo_summarize.data import Dialogues
from hpo_summarize.errors import StudyError
from hpo_summarize.recipe import Recipe

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


def identity_of(recipe: Recipe, splits: Mapping[str, Dialogues]) -> dict[str, Any]:
    """The settings by `key.path` that every run of one study must share.

    Args:
        recipe: Where its data lie does not count, but what they say does.
        splits: The rows of each split by its name, each a part of the identity of its own: a row
            that moves from one to the other changes both.
    """
    content = recipe.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for section in _SECTIONS:
        flat |= _flatten(section, content[section])
    flat |= {f"data.{key}": content["data"][key] for key in _DATA_KEYS}
    flat |= {
        f"search.{key}": content["search"][key] for key in ("objective", "direction", "decode")
    }
    flat |= _flatten("search.epoch_eval", content["search"]["epoch_eval"])
    flat |= {f"data.{name} (content)": _digest(rows) for name, rows in splits.items()}
    return {key: value for key, value in flat.items() if not _is_neutral(key)}


def _digest(split: Dialogues) -> str:
    digest = hashlib.sha256()
    for row in zip(split.dialogues, split.references, strict=True):
        digest.update(json.dumps(row).encode() + b"\n")  # Tells where each text and row ends.
    return digest.hexdigest()[:16]


def check_identity(study: optuna.Study, identity: Mapping[str, Any]) -> None:
    """Refuses to go on with a study that another recipe made; a new study takes the identity.

    Raises:
        StudyError: They differ; the message lists what it was and what it is now.
    """
    known = study.user_attrs.get(IDENTITY)
    if known is None:
        study.set_user_attr(IDENTITY, dict(identity))
        return
    lines = differences(known, identity)
    if not lines:
        return
    raise StudyError(
        f"the study '{study.study_name}' was made with another recipe, and its trials cannot be "
        "compared with new ones:\n" + "\n".join(lines) + "\nGo back to the recipe of the study, or "
        "begin another one with --study_name NAME"
    )


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
    lines = differences(_of_the_model(known), _of_the_model(identity_of(recipe, {})))
    if lines:
        raise StudyError(
            f"the study '{study.study_name}' was made with another recipe, and its result is one "
            "of that recipe alone:\n" + "\n".join(lines) + "\nUse the recipe that the search ran "
            "with: the recipe.yaml of its output folder, or the same changes on the command line"
        )


def _of_the_model(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in identity.items()
        if key.partition(".")[0] in _MODEL_SECTIONS or key in _MODEL_DATA_KEYS
    }


def differences(known: Mapping[str, Any], identity: Mapping[str, Any]) -> list[str]:
    """One line for each setting that differs, the first eight of them; empty if none does."""
    keys = sorted(known.keys() | identity.keys())
    changed = [key for key in keys if known.get(key) != identity.get(key)]
    lines = [f"  {k}: was {known.get(k)!r}, now {identity.get(k)!r}" for k in changed[:_SHOWN]]
    return lines + ([f"  and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else [])


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
