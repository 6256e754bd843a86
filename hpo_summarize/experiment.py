"""The parts that a recipe names, each made when it is first needed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Seq2SeqTrainingArguments,
)
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize import names
from hpo_summarize.arguments import training_fields, with_values
from hpo_summarize.data import Dialogues, from_dataset, load_splits, tokenize
from hpo_summarize.decoding import set_decoding
from hpo_summarize.errors import Problem, RecipeError
from hpo_summarize.model import (
    build_model,
    check_is_seq2seq,
    check_lengths,
    load_config,
    load_tokenizer,
    model_facts,
    train_tokenizer,
)
from hpo_summarize.recipe import Recipe
from hpo_summarize.rouge import Rouge
from hpo_summarize.space import SearchSpace, build_space
from hpo_summarize.trainer import SummarizationTrainer

_TRAINED_VOCABULARY = 8000  # Of a tokenizer that is trained for a model from a config.
_EVAL_BATCH_SIZE = 32


class Experiment:
    """Model, tokenizer, data, metric and trainer of a recipe, for a search or one training.

    Args:
        recipe: The checked recipe.
        datasets: Training and validation rows in the place of those that the recipe names, with
            its text columns, or with `input_ids` and `labels`.
    """

    def __init__(self, recipe: Recipe, datasets: tuple[Dataset, Dataset] | None = None) -> None:
        self.recipe = recipe
        self._datasets = datasets

    @functools.cached_property
    def model_config(self) -> Any:
        """The configuration of the recipe's model, checked against the recipe."""
        config = load_config(self.recipe.model)
        check_is_seq2seq(config)
        check_lengths(config, self.recipe.data)
        return config

    @functools.cached_property
    def space(self) -> SearchSpace:
        """The search space."""
        return build_space(self.recipe, model_facts(self.model_config))

    @functools.cached_property
    def splits(self) -> tuple[Dialogues, Dialogues]:
        """Training and validation split as text."""
        if self._datasets is None:
            return load_splits(self.recipe.data)
        section = self.recipe.data
        train, validation = self._datasets
        return (
            from_dataset(train, section, self.tokenizer),
            from_dataset(validation, section, self.tokenizer),
        )

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer; for a model from a config without one, trained on the data."""
        model, special_tokens = self.recipe.model, self.recipe.data.special_tokens
        if model.name or model.tokenizer:
            return load_tokenizer(model, special_tokens)
        if self._datasets is not None:
            message = "a model from a config needs a tokenizer where data sets are given; set one"
            raise RecipeError([Problem("model.tokenizer", message)])
        train = self.splits[0]
        texts = [*train.dialogues, *(text for row in train.references for text in row)]
        size = (model.from_config or {}).get("vocab_size", _TRAINED_VOCABULARY)
        return train_tokenizer(texts, size, special_tokens)

    @functools.cached_property
    def rouge(self) -> Rouge:
        """The metric.

        Raises:
            RecipeError: The package of its tokenizer is missing.
        """
        try:
            return Rouge(**self.recipe.rouge.model_dump())
        except ImportError as error:
            raise RecipeError([Problem("rouge.tokenizer", str(error))]) from None

    def tokenize(self, split: Dialogues) -> Dataset:
        """Token ids of a split, for the trainer."""
        return tokenize(split, self.tokenizer, self.recipe.data)

    def build_trainer(
        self, output_dir: Path, train: Dialogues, validation: Dialogues
    ) -> SummarizationTrainer:
        """A trainer that builds its model for a trial, or from the recipe's own values without one.

        Args:
            output_dir: Folder for its checkpoints.
            train: Rows to train on.
            validation: Rows that every evaluation scores with ROUGE.
        """
        args = build_arguments(self.recipe, output_dir)
        return self._make_trainer(args, self._build_model, train, validation)

    def build_trainer_for(
        self,
        values: Mapping[str, Any],
        args: Seq2SeqTrainingArguments,
        train: Dialogues,
        validation: Dialogues,
    ) -> SummarizationTrainer:
        """A trainer of one training with values that are known; see `build_trainer`.

        Args:
            values: Hyperparameters by name; what they change in training stands in `args`.
            args: As of `arguments_for`.
            train: Rows to train on.
            validation: Rows that every evaluation scores with ROUGE.
        """
        return self._make_trainer(args, lambda: self.build_model(values), train, validation)

    def arguments_for(
        self, values: Mapping[str, Any], output_dir: Path
    ) -> Seq2SeqTrainingArguments:
        """The recipe's training arguments with hyperparameters in the place of fixed values."""
        args = build_arguments(self.recipe, output_dir)
        return with_values(args, names.split_by_owner(values)["training"], args.world_size)

    def build_model(self, values: Mapping[str, Any]) -> Any:
        """A fresh model with these hyperparameters, those of decoding in its generation config."""
        model = build_model(self.recipe, self.tokenizer, values)
        decoding = names.split_by_owner(values)["generation"]
        set_decoding(unwrap_peft_model(model).generation_config, decoding)
        return model

    def _make_trainer(
        self,
        args: Seq2SeqTrainingArguments,
        model_init: Callable[..., Any],
        train: Dialogues,
        validation: Dialogues,
    ) -> SummarizationTrainer:
        def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
            return self.score(self.decode(prediction.predictions), validation.references)

        trainer = SummarizationTrainer(
            args=args,
            data_collator=DataCollatorForSeq2Seq(self.tokenizer),
            train_dataset=self.tokenize(train),
            eval_dataset=self.tokenize(validation),
            processing_class=self.tokenizer,
            model_init=model_init,
            compute_metrics=compute_metrics,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer

    def decode(self, ids: np.ndarray) -> list[str]:
        """Summaries as text.

        Args:
            ids: Token ids of shape `(rows, tokens)`, padded at the end.
        """
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def score(self, summaries: Sequence[str], references: Sequence[list[str]]) -> dict[str, float]:
        """ROUGE F1 of summaries, 0 to 1, by name."""
        return self.rouge.compute(predictions=summaries, references=references)

    def _build_model(self, trial: Any = None) -> Any:
        values: Mapping[str, Any] = {} if trial is None else trial.params
        return build_model(self.recipe, self.tokenizer, values)


def build_arguments(recipe: Recipe, output_dir: Path) -> Seq2SeqTrainingArguments:
    """The training arguments that a recipe fixes.

    Evaluation and saving happen once an epoch, so that a trial can go on after a crash, and no
    tracker is on: all of it unless the recipe says otherwise under `training`.
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
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    n_processes = PartialState().num_processes
    fields = {**defaults, **training_fields(recipe.training.model_dump(), n_processes)}
    return Seq2SeqTrainingArguments(
        output_dir=str(output_dir), predict_with_generate=True, **fields
    )


def eval_batch_size(recipe: Recipe) -> int:
    """Dialogues that a device summarises at once."""
    return recipe.training.settings().get("per_device_eval_batch_size", _EVAL_BATCH_SIZE)
