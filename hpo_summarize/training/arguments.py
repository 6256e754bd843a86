"""From the values of a recipe or a trial to Hugging Face's training arguments."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from transformers import Seq2SeqTrainingArguments, TrainingArguments

from hpo_summarize.config.parameters import (
    BATCH_SIZE,
    BY_METRIC,
    TRAINING_WORDS,
    WARMUP_RATIO,
)
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import LaunchError, Problem, RecipeError

Arguments = TypeVar("Arguments", bound=TrainingArguments)

_EVAL_BATCH_SIZE = 32


def build_arguments(recipe: Recipe, output_dir: Path) -> Seq2SeqTrainingArguments:
    """The training arguments that a recipe fixes.

    Evaluation and saving happen once an epoch, so that a trial can be resumed after a crash, and no
    tracker is on. The section `training` of the recipe takes precedence.

    Raises:
        RecipeError: The recipe asks for fp16 on a CPU.
    """
    metric = recipe.search.objectives[0]
    defaults: dict[str, Any] = {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,  # And the best one.
        "metric_for_best_model": f"eval_{metric}",
        "greater_is_better": recipe.search.direction == "maximize",
        "per_device_eval_batch_size": _EVAL_BATCH_SIZE,
        "logging_strategy": "epoch",
        "log_level": "error",
        "log_level_replica": "error",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    n_processes = PartialState().num_processes
    fields = {**defaults, **training_fields(recipe.training.model_dump(), n_processes)}
    args = Seq2SeqTrainingArguments(
        output_dir=str(output_dir), predict_with_generate=True, **fields
    )
    if args.fp16 and args.device.type == "cpu":  # accelerate silently ignores it.
        message = "it acts on an accelerator only, and this run uses the CPU (value True); drop it"
        raise RecipeError([Problem("training.fp16", message)])
    return args


def eval_batch_size(recipe: Recipe) -> int:
    """Dialogues that a device summarises at once."""
    return recipe.training.settings().get("per_device_eval_batch_size", _EVAL_BATCH_SIZE)


def largest_on_device(recipe: Recipe) -> int:
    """Most dialogues that a device trains on at once: the recipe's limit, or all of a batch."""
    return recipe.training.settings().get("per_device_train_batch_size", sys.maxsize)


def with_values(
    args: Arguments,
    values: Mapping[str, Any],
    world_size: int = 1,
    largest_per_device: int | None = None,
) -> Arguments:
    """Fresh training arguments: those of `args`, with the values of a trial.

    Nothing is cast and `args` is left as it is, so that no value reaches another trial. All checks
    of the arguments' class run again on the result.

    Args:
        args: The arguments that the recipe or the script fixes.
        values: Hyperparameters by name, those that act on the training.
        world_size: Number of processes that train together.
        largest_per_device: Examples that a device takes at once; more are accumulated. None: as
            many as `args` puts on one.
    """
    largest = largest_per_device or args.per_device_train_batch_size
    fields = training_fields(values, world_size, largest)
    return dataclasses.replace(args, **fields)


def training_fields(
    values: Mapping[str, Any], world_size: int = 1, largest_per_device: int | None = None
) -> dict[str, Any]:
    """The fields of `TrainingArguments` that hyperparameters stand for.

    Args:
        values: `batch_size` is the number of examples of one optimizer step over all processes;
            `warmup_ratio` the share of all steps (a float `warmup_steps` below 1 means that).
        world_size: Number of processes that train together.
        largest_per_device: Examples that a device takes at once; more are accumulated. None: all.
    """
    fields = {TRAINING_WORDS.get(name, name): value for name, value in values.items()}
    if WARMUP_RATIO in fields:
        ratio = float(fields.pop(WARMUP_RATIO))
        # A recipe has a ratio of 0 also where it gives a number of steps.
        fields["warmup_steps"] = ratio or fields.get("warmup_steps", ratio)
    if BATCH_SIZE in fields:
        batch_size = fields.pop(BATCH_SIZE)
        largest = fields.get("per_device_train_batch_size", largest_per_device)
        per_device, accumulation = plan_batch(batch_size, world_size, largest)
        fields["per_device_train_batch_size"] = per_device
        fields["gradient_accumulation_steps"] = accumulation
    return fields


def within_device(args: Arguments, largest: int, largest_eval: int) -> Arguments:
    """The same optimizer steps with smaller per-device batches and more accumulation.

    Args:
        args: Training arguments.
        largest: Examples that a device takes at once in training; `args` may ask for fewer.
        largest_eval: Likewise in evaluation.
    """
    largest = min(largest, args.per_device_train_batch_size)
    share = args.per_device_train_batch_size * args.gradient_accumulation_steps
    per_device, accumulation = plan_batch(share, 1, largest)
    return dataclasses.replace(
        args,
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        per_device_eval_batch_size=min(args.per_device_eval_batch_size, largest_eval),
    )


def drop_decoding(args: Seq2SeqTrainingArguments, decoding: Mapping[str, Any]) -> None:
    """Drops the arguments that would take precedence over the decoding of a trial.

    Args:
        args: Training arguments of the trial, changed in place.
        decoding: Fields of its generation config.
    """
    args.generation_config = None
    if "num_beams" in decoding:
        args.generation_num_beams = None
    if decoding.keys() & {"max_length", "max_new_tokens"}:
        args.generation_max_length = None


def follows_metric(args: TrainingArguments) -> bool:
    """Whether the learning rate depends on the evaluations."""
    return args.lr_scheduler_type in BY_METRIC


def plan_batch(batch_size: int, world_size: int, largest: int | None) -> tuple[int, int]:
    """Splits an effective batch into `(per_device, accumulation)`.

    `per_device * accumulation * world_size == batch_size` always, with the largest per-device batch
    that divides it and is at most `largest`.

    Example:
        >>> plan_batch(48, world_size=2, largest=16)
        (12, 2)

    Raises:
        LaunchError: The batch cannot be split evenly among the processes.
    """
    share, rest = divmod(batch_size, world_size)
    if rest or not share:
        raise LaunchError(
            f"batch_size {batch_size} cannot be split evenly among {world_size} processes; "
            f"choose multiples of {world_size}, or start another number of processes"
        )
    limit = min(share, largest or share)
    per_device = max(size for size in range(1, limit + 1) if share % size == 0)
    return per_device, share // per_device
