"""Fields of `Seq2SeqTrainingArguments` that do nothing here, or that would break a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpo_summarize import names
from hpo_summarize.errors import Problem
from hpo_summarize.recipe.settings import possible_values

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
_REFUSED = {
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
    if name not in _REFUSED or value == names.defaults().get(name):
        return None
    return f"cannot be used here (value {value!r}): {_REFUSED[name]}"


def why_not_sampled(name: str) -> str | None:
    """Says why a training argument cannot be searched in a recipe, or None."""
    if name == "lr_scheduler_kwargs" or name in ("optim_args", "optim_target_modules"):
        return "it belongs to one schedule or optimizer; fix it under training"
    return _REFUSED.get(name)


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
