"""Fields of the Hugging Face classes: their types, and those that a recipe cannot set."""

from __future__ import annotations

import enum
import math
import types
import typing
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from hpo_summarize.config.parameters import HUB_DECODING, default_values
from hpo_summarize.config.settings import possible_values
from hpo_summarize.errors import Problem, did_you_mean

if TYPE_CHECKING:
    from transformers import GenerationConfig


_SHOWN = 12  # Members of an enumeration that a message lists.
_PLAIN = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping of keys to values",
}
DEEPEST = 20  # Levels of mappings and lists in a recipe.
TOO_DEEP = f"is nested more than {DEEPEST} levels deep; flatten it"
LARGEST = 2**63  # Whole numbers from here on fit in no integer of NumPy, torch or a database.


def unusable_values(value: Any, key: str = "", depth: int = 0) -> Iterator[Problem]:
    """Every value anywhere in `value` that no setting can take, whatever its type."""
    if isinstance(value, Mapping | list):
        if depth > DEEPEST:
            yield Problem(key, TOO_DEEP)
            return
        for name, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from unusable_values(inner, f"{key}.{name}" if key else str(name), depth + 1)
    elif isinstance(value, str):
        if "\0" in value or not value.isascii() and _has_surrogate(value):
            yield Problem(key, f"holds a character that no file can, got {value!r}; remove it")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield Problem(key, f"must be a finite number, got {value!r}")
    elif isinstance(value, int):
        if abs(value) >= LARGEST:
            yield Problem(key, f"must be a whole number below 2 to the power of 63, got {value!r}")
    elif value is not None:
        kind = type(value).__name__
        yield Problem(key, f"must not be a {kind}, got {value!r}; put text that looks so in quotes")


def last_part(value: Any) -> Any:
    """A value with the last part in the place of each absolute path and of each folder in it."""
    if isinstance(value, Mapping):
        return {key: last_part(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [last_part(inner) for inner in value]
    if not isinstance(value, str) or "\0" in value:
        return value
    path = Path(value)
    is_local = path.is_absolute() or value.startswith("~") or (value != "" and path.is_dir())
    return path.absolute().name if is_local else value


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def model_type_problem(value: Any) -> str | None:
    """Says why `value` cannot be a model type of the transformers library; None if it can."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if isinstance(value, str) and value in CONFIG_MAPPING_NAMES:
        return None
    nearest = did_you_mean(str(value), CONFIG_MAPPING_NAMES)
    return f"must be a model type of transformers, such as bart or t5, got {value!r}{nearest}"


def type_problem(value: Any, kind: Any) -> str | None:
    """Says why `value` cannot be a value of the type `kind`; None if it can.

    Nothing is converted: the text "1" is no number, and true is no 1. A whole number is a number.
    Where a field takes a member of an enumeration by its text, other texts are refused.
    """
    members = _enumeration(kind)
    if members and not (value is None and type(None) in typing.get_args(kind)):
        if isinstance(value, str) and value in members:
            return None
        shown = ", ".join(members[:_SHOWN]) + (", ..." if len(members) > _SHOWN else "")
        return f"must be one of {shown}, got {value!r}{did_you_mean(str(value), members)}"
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(strict=True, arbitrary_types_allowed=True))
        adapter.validate_python(value)
    except PydanticUserError:
        return None  # A type that pydantic knows nothing of; the class itself has to check it.
    except ValidationError:
        return f"must be {_describe(kind)}, got {value!r}"
    return None


def _enumeration(kind: Any) -> list[str]:
    for option in (kind, *typing.get_args(kind)):
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return [str(member.value) for member in option]
    return []


def _describe(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Annotated:
        return str(kind.__metadata__[0].description)
    if typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Literal):
        return " or ".join(_describe(option) for option in typing.get_args(kind))
    kind = typing.get_origin(kind) or kind
    return "null" if kind is type(None) else _PLAIN.get(kind, getattr(kind, "__name__", str(kind)))


_FORM = "only the summaries are read, whatever else comes with them; drop it"
_ASSISTANT = "summaries are decoded in batches, with nothing that drafts them before; drop it"

# By field: why it is refused, and what to do.
_REFUSED_DECODING = {
    **dict.fromkeys(("output_attentions", "output_hidden_states"), _FORM),
    **dict.fromkeys(("output_logits", "output_scores"), _FORM),
    **dict.fromkeys(("assistant_confidence_threshold", "assistant_early_exit"), _ASSISTANT),
    **dict.fromkeys(("assistant_ensemble_weight", "assistant_lookbehind"), _ASSISTANT),
    **dict.fromkeys(("num_assistant_tokens", "num_assistant_tokens_schedule"), _ASSISTANT),
    **dict.fromkeys(("target_lookbehind", "is_assistant", "use_mtp"), _ASSISTANT),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size"), _ASSISTANT),
    **dict.fromkeys(("speculation_type", "token_healing"), _ASSISTANT),
    "max_time": "summaries would depend on the speed of the machine; set max_new_tokens",
    "low_memory": "transformers does nothing with it any more; drop it",
    "prefill_chunk_size": "the dialogue goes through the encoder as a whole; drop it",
    "max_cache_len": "the key-value cache is no longer than the summaries; drop it",
    "cache_config": "no encoder-decoder has a quantised cache, which alone reads it; drop it",
    "continuous_batching_config": "evaluation has batches of its own; drop it",
}
_LEAST = ("min_length", "min_new_tokens")
_BY_HUB_OR_FORM = (*HUB_DECODING, "num_return_sequences", "return_dict_in_generate")


def unusable_decoding(name: str, value: Any) -> str | None:
    """Says why a fixed field of the decoding cannot have this value here, or None."""
    if name == "use_cache":
        reason = "generation always uses the key-value cache; drop it"
    elif value is None or value is False or name not in _REFUSED_DECODING:
        return None
    else:
        reason = _REFUSED_DECODING[name]
    return f"cannot be used here (value {value!r}): {reason}"


def foreign_settings(config: GenerationConfig, given: Container[str]) -> dict[str, Any]:
    """Values of a checkpoint's own decoding that cannot be used on other data, or not here at all.

    Its least length, such as the 56 tokens of `facebook/bart-large-cnn`, goes with its most tokens,
    whose place another limit has taken; and it has what no recipe may set.

    Args:
        config: The checkpoint's own.
        given: Names that the recipe fixes or searches.
    """
    found = {
        name: getattr(config, name, None)
        for name in (*_LEAST, *_REFUSED_DECODING, *_BY_HUB_OR_FORM)
    }
    return {
        name: value
        for name, value in found.items()
        if name not in given and value and value != default_values().get(name)
    }


def why_never_decoded(name: str) -> str | None:
    """Says why a field of the decoding cannot be searched in a recipe, or None."""
    return _REFUSED_DECODING.get(name)


_PUSHES = "nothing is pushed to the Hub here; push the finished model with `hf upload`"
_DO = "the program that is run decides what is done; drop it"
_SHARDS = "a model is trained whole on each device here; drop it, or use search.parallel: ddp"
_LIGER = "Liger has no kernels for BART, T5 and their like; drop it"
_OBJECTIVE = "it follows search.objective and search.direction; set those"
_BATCHES = "batch_size alone says how many examples a step has, on any number of devices; drop it"
_LABELS = "the tokenised dialogues have one column of labels, and it is found; drop it"
_PREDICTIONS = "ROUGE needs the predictions of the whole split, as one array, and nothing else"
_ONCE_AN_EPOCH = "a trial is evaluated and saved once an epoch"

# By field: why it is refused, and what to do. A value that is the field's default is let through.
_REFUSED_ARGUMENTS = {
    "max_steps": "a trial is as long as its epochs; set num_epochs, which may be a fraction",
    "average_tokens_across_devices": "the loss is always the mean over all tokens of a step; drop "
    "it",
    "bf16_full_eval": "evaluations in the middle of a training do not use it; set bf16",
    "fp16_full_eval": "evaluations in the middle of a training do not use it; set fp16",
    "use_liger_kernel": _LIGER,
    "liger_kernel_config": _LIGER,
    "use_cache": "generation always uses the key-value cache, and training never; drop it",
    "auto_find_batch_size": "a batch that does not fit is halved and accumulated anyway; drop it",
    "eval_steps": f"{_ONCE_AN_EPOCH}; drop it",
    "save_steps": f"{_ONCE_AN_EPOCH}; drop it",
    "eval_on_start": "the value of a trial is that of its best epoch, and that would count the "
    "untrained model as one; drop it",
    "prediction_loss_only": f"{_PREDICTIONS}; drop it",
    "batch_eval_metrics": f"{_PREDICTIONS}; drop it",
    "eval_do_concat_batches": f"{_PREDICTIONS}; drop it",
    "eval_use_gather_object": f"{_PREDICTIONS}; drop it",
    "include_for_metrics": f"{_PREDICTIONS}; drop it",
    "save_only_model": "without the optimizer no trial could go on after a crash; drop it",
    "enable_jit_checkpoint": "it takes the signals by which a search is stopped cleanly; drop it",
    "push_to_hub": _PUSHES,
    "load_best_model_at_end": "the weights of the best epoch are kept in any case; drop it",
    "metric_for_best_model": _OBJECTIVE,
    "greater_is_better": _OBJECTIVE,
    "ignore_data_skip": "a trial that goes on after a crash must see the same examples; drop it",
    "restore_callback_states_from_checkpoint": "no callback here has a state to restore; drop it",
    "accelerator_config": _BATCHES,
    "parallelism_config": _SHARDS,
    "fsdp": _SHARDS,
    "fsdp_config": _SHARDS,
    "deepspeed": _SHARDS,
    "dataloader_drop_last": "it would leave out rows of the validation split, too; drop it",
    "remove_unused_columns": "the tokenised dialogues have no other columns; drop it",
    "label_names": _LABELS,
    "length_column_name": "the tokenised dialogues have no such column; drop it",
    "do_train": _DO,
    "do_eval": _DO,
    "do_predict": _DO,
    "resume_from_checkpoint": "the same command again goes on by itself; drop it",
    "local_rank": "the launcher sets it; drop it",
    "sortish_sampler": "transformers has no sampler for it any more; set "
    "train_sampling_strategy: group_by_length",
    **{
        f"hub_{name}": _PUSHES
        for name in ("model_id", "strategy", "private_repo", "always_push", "revision")
    },
}
# By field: the values that are possible, and why no others are.
_ALLOWED = {
    "eval_strategy": (("epoch",), _ONCE_AN_EPOCH),
    "save_strategy": (("epoch", "no"), f"{_ONCE_AN_EPOCH}, or not saved at all"),
}
_WITHOUT_OPTIONS = ("constant", "constant_with_warmup")
# Schedules that follow the metric; without a `mode` they take a rising ROUGE for a failing one.
BY_METRIC = ("reduce_lr_on_plateau", "greedy")


def unusable_field(name: str, value: Any) -> str | None:
    """Says why a fixed training argument cannot have this value here, or None."""
    if name in _ALLOWED:
        allowed, reason = _ALLOWED[name]
        if value in allowed:
            return None
        return f"must be {' or '.join(allowed)}, got {value!r}: {reason}"
    if name not in _REFUSED_ARGUMENTS or value == default_values().get(name):
        return None
    return f"cannot be used here (value {value!r}): {_REFUSED_ARGUMENTS[name]}"


def why_not_sampled(name: str) -> str | None:
    """Says why a training argument cannot be searched in a recipe, or None."""
    if name == "lr_scheduler_kwargs" or name in ("optim_args", "optim_target_modules"):
        return "it belongs to one schedule or optimizer; fix it under training"
    return _REFUSED_ARGUMENTS.get(name)


def schedule_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Options that no schedule reads; a schedule that does not know which way is up."""
    training, search = parts.get("training", {}), parts.get("search", {})
    possible = possible_values("scheduler_type", parts)
    schedules = [schedule for schedule in possible if schedule in BY_METRIC]
    mode = "min" if search.get("direction") == "minimize" else "max"
    given = training.get("lr_scheduler_kwargs")
    if given and possible and all(schedule in _WITHOUT_OPTIONS for schedule in possible):
        yield Problem(
            "training.lr_scheduler_kwargs",
            f"{possible[0]} has no options (value {given!r}); drop it or change scheduler_type",
        )
    checkpointing = training.get("activation_checkpointing", training.get("gradient_checkpointing"))
    for key in ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"):
        if training.get(key) and not checkpointing:
            message = f"it acts only with activation_checkpointing (value {training[key]!r})"
            yield Problem(f"training.{key}", f"{message}; set that, or drop it")
    if schedules and not (isinstance(given, Mapping) and given.get("mode") == mode):
        yield Problem(
            "training.lr_scheduler_kwargs",
            f"{schedules[0]} follows the objective and takes it for a loss unless told otherwise "
            f"(value {given!r}); set training.lr_scheduler_kwargs.mode={mode}",
        )
