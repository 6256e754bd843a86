"""transformers' own trainer on the data of a recipe, and what it can search of its space."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from hpo_summarize.components import Experiment
from hpo_summarize.config.parameters import BATCH_SIZE, TRAINING_WORDS, WARMUP_RATIO
from hpo_summarize.search_space import SearchSpace
from hpo_summarize.training.arguments import training_fields

_EVAL_BATCH_SIZE = 32


def stock_name(name: str) -> str | None:
    """The argument of `Seq2SeqTrainingArguments` for one of our names; None if there is none."""
    words = {
        **TRAINING_WORDS,
        BATCH_SIZE: "per_device_train_batch_size",
        WARMUP_RATIO: "warmup_steps",
        "num_beams": "generation_num_beams",
    }
    fields = Seq2SeqTrainingArguments.__dataclass_fields__
    field = words.get(name, name)
    return field if field in fields else None


def stock_space(experiment: Experiment) -> SearchSpace:
    """The part of a recipe's space that the stock search can express."""
    space = {n: p for n, p in experiment.recipe.space.items() if stock_name(n) is not None}
    return Experiment(experiment.recipe.model_copy(update={"space": space})).space


def build_stock_trainer(
    experiment: Experiment,
    output_dir: Path,
    eval_strategy: str,
    values: Mapping[str, Any] | None = None,
    **options: Any,
) -> Seq2SeqTrainer:
    """`Seq2SeqTrainer` on the splits of a recipe, with ROUGE as its metric.

    Args:
        experiment: Gives splits, tokenizer and metric.
        output_dir: Folder for its checkpoints.
        eval_strategy: When it evaluates and saves, `"epoch"` or `"no"`.
        values: Training values, by our names, that replace those of the recipe.
        **options: Further arguments of the trainer: its model, its callbacks.
    """
    train, validation = experiment.splits
    fixed = experiment.recipe.training.model_dump()
    # Its trials take batches as they are, on any device, and accumulate nothing.
    fixed.pop("per_device_train_batch_size", None)
    fields = training_fields({**fixed, **(values or {})})
    if not fields["warmup_steps"]:
        del fields["warmup_steps"]  # Left at Hugging Face's own default, as in its documentation.

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        ids = prediction.predictions
        ids = np.where(ids == -100, experiment.tokenizer.pad_token_id, ids)
        return experiment.score(experiment.decode(ids), validation.references)

    trainer = Seq2SeqTrainer(
        args=_build_arguments(output_dir, eval_strategy, fields),
        data_collator=DataCollatorForSeq2Seq(experiment.tokenizer),
        train_dataset=experiment.tokenize(train),
        eval_dataset=experiment.tokenize(validation),
        processing_class=experiment.tokenizer,
        compute_metrics=compute_metrics,
        **options,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _build_arguments(
    output_dir: Path, eval_strategy: str, fields: Mapping[str, Any]
) -> Seq2SeqTrainingArguments:
    defaults = {"per_device_eval_batch_size": _EVAL_BATCH_SIZE, "log_level": "error"}
    own = {
        "output_dir": str(output_dir),
        "predict_with_generate": True,
        "eval_strategy": eval_strategy,
        "save_strategy": eval_strategy,  # The winner's weights are wanted at the end.
        "save_total_limit": 1,
        "save_only_model": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return Seq2SeqTrainingArguments(**{**defaults, **fields, **own})
