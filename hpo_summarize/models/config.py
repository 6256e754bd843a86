"""Where a model comes from, and its configuration, checked before weights are loaded."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, AutoConfig, GenerationConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES as SEQ2SEQ_TYPES,
)

from hpo_summarize.config.schema import ModelSection, Recipe
from hpo_summarize.errors import ModelError, did_you_mean
from hpo_summarize.models.families import require_family

# What torch.load says of a pickle that holds more than tensors.
_CODE_IN_PICKLE = "weights only load failed"


def find_place(what: str, place: str) -> str:
    """The folder at `place`, or `place` itself where it can be the id of a repository on the Hub.

    Raises:
        ModelError: It can only be a folder, and there is none.
    """
    path = Path(place).expanduser()
    if path.is_dir():
        return str(path)
    if path.exists() or place.startswith((".", "/", "~")) or place.count("/") > 1:
        found = "is a file" if path.is_file() else f"does not exist, seen from {Path.cwd()}"
        raise ModelError(
            f"model: the {what} is to come from the folder '{place}', which {found}; "
            "give a folder that save_pretrained wrote, or the id of a repository on the Hub"
        )
    return place


def loading_options(section: ModelSection, place: str) -> dict[str, Any]:
    """The arguments of `from_pretrained`; a revision is one of the model's own repository."""
    options: dict[str, Any] = {"trust_remote_code": section.trust_remote_code}
    if section.revision and place == section.name:
        options["revision"] = section.revision
    return options


def not_loaded(what: str, source: Any, error: Exception) -> ModelError:
    """The error for whatever a loader of transformers raised."""
    if _CODE_IN_PICKLE in str(error).lower():
        return ModelError(
            f"model: the weights of '{source}' are a pickle file that holds more than weights "
            "and could run code, so it is not loaded; take a checkpoint in the safetensors format"
        )
    lines = (str(error).strip() or type(error).__name__).splitlines()
    reason = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    if not isinstance(source, str):
        return ModelError(f"model.from_config: no model can be made of {source} ({reason})")
    where = f"the folder '{source}'" if Path(source).exists() else f"'{source}'"
    return ModelError(
        f"model: the {what} cannot be loaded from {where} ({reason}). "
        "Give a folder that save_pretrained wrote, or the id of a repository on the Hub"
    )


def load_config(section: ModelSection) -> PretrainedConfig:
    """The configuration of a recipe's model, a new object at every call.

    Raises:
        ModelError: There is no such checkpoint, model type or field.
    """
    if section.name is None:
        return _make_config(section.from_config or {})
    place = find_place("model", section.name)
    try:
        return AutoConfig.from_pretrained(place, **loading_options(section, section.name))
    except Exception as error:  # transformers raises OSError, ValueError, KeyError and its own.
        raise not_loaded("model", section.name, error) from None


def load_decoding(section: ModelSection, config: PretrainedConfig) -> GenerationConfig:
    """The decoding of a recipe's model; old checkpoints have it in their configuration."""
    place = find_place("model", str(section.name))
    with suppress(OSError):
        return GenerationConfig.from_pretrained(place, **loading_options(section, place))
    return GenerationConfig.from_model_config(config)


def _make_config(given: Mapping[str, Any]) -> PretrainedConfig:
    fields = copy.deepcopy(dict(given))
    model_type = fields.pop("model_type")
    if model_type not in CONFIG_MAPPING:
        raise ModelError(
            f"model.from_config.model_type: transformers has no model type {model_type!r}"
            f"{did_you_mean(str(model_type), SEQ2SEQ_TYPES, 'take bart or t5, for example')}"
        )
    kind = CONFIG_MAPPING[model_type]
    known = [*inspect.signature(kind.__init__).parameters, *kind.attribute_map]
    for field in fields:
        if field not in known:  # It would be kept as an attribute that nothing reads.
            nearest = did_you_mean(str(field), known, "correct the name or take it out")
            raise ModelError(
                f"model.from_config.{field}: a '{model_type}' has no such field "
                f"(value {fields[field]!r}){nearest}"
            )
    try:
        return AutoConfig.for_model(model_type, **fields)
    except Exception as error:
        raise not_loaded("model", given, error) from None


def check_lengths(config: PretrainedConfig, recipe: Recipe) -> None:
    """Refuses texts that the model has no positions for.

    The last token of a summary is never read again, so `n` positions are enough for `n` new tokens.

    Raises:
        ModelError: One of the lengths in `data` and `generation`, or the highest `max_new_tokens`
            of the space, is above the model's limit.
    """
    family, data = require_family(config), recipe.data
    inputs, outputs = family.max_input_tokens(config), family.max_output_tokens(config)
    searched = recipe.space.get("max_new_tokens")
    highest = max(searched.edges()) if searched else None
    for key, length, limit in (
        ("data.max_dialogue_tokens", data.max_dialogue_tokens, inputs),
        ("data.max_summary_tokens", data.max_summary_tokens, outputs),
        ("generation.max_new_tokens", recipe.generation.max_new_tokens, outputs),
        ("space.max_new_tokens", highest, outputs),
    ):
        if length is not None and limit is not None and length > limit:
            raise ModelError(
                f"{key} is {length:g}, and the model has {limit} positions; "
                f"set it to {limit} or less"
            )
