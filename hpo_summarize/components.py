"""The parts that a recipe names, each made when it is first needed."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import (
    EvalPrediction,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Seq2SeqTrainingArguments,
)
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.config.parameters import default_values
from hpo_summarize.config.schema import Recipe
from hpo_summarize.config.validation import length_problems
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.data.splits import load_splits
from hpo_summarize.decoder import decode_texts
from hpo_summarize.errors import Problem, RecipeError
from hpo_summarize.generation import set_decoding
from hpo_summarize.models.config import check_lengths, load_config, load_decoding
from hpo_summarize.models.factory import build_model
from hpo_summarize.models.families import Family, require_family
from hpo_summarize.models.shared_base import PretrainedBase
from hpo_summarize.models.tokenization import from_dataset, label_texts, output_length, tokenize
from hpo_summarize.models.tokenizer import keep_in_texts, load_tokenizer, train_tokenizer
from hpo_summarize.rouge import Rouge
from hpo_summarize.search_space import SearchSpace, TrialSpec, build_space
from hpo_summarize.training.arguments import build_arguments, largest_on_device, with_values
from hpo_summarize.training.ddp import DecidedTrial, FollowedTrial
from hpo_summarize.training.epoch_eval import EpochEvaluation
from hpo_summarize.training.evaluation import TEXTS
from hpo_summarize.training.trainer import SummarizationTrainer

_TRAINED_VOCABULARY = 8000  # Of a tokenizer that is trained for a model from a config.


class Experiment:
    """Model, tokenizer, data, metric and trainer of a recipe, for a search or one training.

    Args:
        recipe: The checked recipe.
        datasets: Training and validation rows in place of those that the recipe names, with
            its text columns, or with `input_ids` and `labels`.
        share_base: Read the checkpoint once and put the adapters of every model on the same
            weights, as a search does; no such model may be merged before `unshare`.
    """

    def __init__(
        self,
        recipe: Recipe,
        datasets: tuple[Dataset, Dataset] | None = None,
        share_base: bool = False,
    ) -> None:
        self.recipe = recipe
        self._datasets = datasets
        # Without adapters every weight is trained, and a second copy would only cost memory.
        self._shares = share_base and recipe.lora is not None and recipe.model.name is not None

    @functools.cached_property
    def model_config(self) -> Any:
        """The configuration of the recipe's model, checked against the recipe."""
        config = load_config(self.recipe.model)
        check_lengths(config, self.recipe)
        return config

    @property
    def family(self) -> Family:
        """The family of the recipe's model."""
        return require_family(self.model_config)

    @property
    def own_decoding(self) -> GenerationConfig:
        """The decoding of the recipe's checkpoint, before the recipe has changed any of it."""
        return load_decoding(self.recipe.model, self.model_config)

    @functools.cached_property
    def whole_space(self) -> SearchSpace:
        """The parameters of both stages of a staged search, or of the one space there is."""
        return build_space(self.recipe, self.facts)

    @property
    def facts(self) -> dict[str, Any]:
        """Type and settings of the model, for the conditions of the space."""
        return self.family.facts(self.model_config)

    @functools.cached_property
    def space(self) -> SearchSpace:
        """The search space; in a staged search that of the training."""
        staged = self.recipe.search.decode == "staged"
        return build_space(self.recipe, self.facts, "training" if staged else "joint")

    @functools.cached_property
    def splits(self) -> tuple[Dialogues, Dialogues]:
        """Training and validation split as text."""
        if self._datasets is None:
            return load_splits(self.recipe.data)
        tokenizer = self._loaded_tokenizer
        for rows in self._datasets:
            tokenizer = keep_in_texts(tokenizer, label_texts(rows, tokenizer, False))
        train, validation = self._datasets
        return (
            from_dataset(train, self.recipe.data, tokenizer),
            from_dataset(validation, self.recipe.data, tokenizer),
        )

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, whose decoded texts keep every token that a reference has.

        For a model from a config without a tokenizer, one that is trained on the data.
        """
        references = (text for split in self.splits for row in split.references for text in row)
        return keep_in_texts(self._loaded_tokenizer, references)

    @functools.cached_property
    def _loaded_tokenizer(self) -> PreTrainedTokenizerBase:
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
    def base(self) -> PretrainedBase | None:
        """The pretrained weights below the adapters of all models, where they are shared."""
        return PretrainedBase(self.recipe, self.tokenizer) if self._shares else None

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

    @functools.cached_property
    def max_new_tokens(self) -> int:
        """Most tokens of a generated summary, where the trial does not say it.

        The recipe's number; without one, what nearly all training references need
        (`data.output_length`), as far as the model has positions. A search sets it to what its
        study began with.

        Raises:
            RecipeError: The recipe wants longer summaries.
        """
        given = self.recipe.generation.max_new_tokens
        if given is not None:
            return given
        usual = output_length(self.splits[0], self.tokenizer, self.recipe.data, self.family)
        length = min(usual, self.family.max_output_tokens(self.model_config) or usual)
        if problems := [*length_problems(self.recipe, length)]:
            raise RecipeError(problems)
        return length

    @property
    def longest_output(self) -> int:
        """Most tokens of a generated summary in any trial."""
        searched = self.recipe.possible_values("max_new_tokens")
        return max(self.max_new_tokens, *(value for value in searched if value is not None), 0)

    def adopt_length(self, recorded: int | None) -> None:
        """Goes on with the `max_new_tokens` that a study recorded, where the recipe gives none."""
        if recorded is not None and self.recipe.generation.max_new_tokens is None:
            self.max_new_tokens = recorded

    @property
    def decided_recipe(self) -> Recipe:
        """The recipe with `max_new_tokens` as a number."""
        decided = {"max_new_tokens": self.max_new_tokens}
        generation = self.recipe.generation.model_copy(update=decided)
        return self.recipe.model_copy(update={"generation": generation})

    def tokenize(self, split: Dialogues) -> Dataset:
        """Token ids of a split, for the trainer."""
        return tokenize(split, self.tokenizer, self.recipe.data, self.family)

    def build_trainer(
        self,
        args: Seq2SeqTrainingArguments,
        train: Dialogues,
        validation: Dialogues,
        spec: TrialSpec | None = None,
    ) -> SummarizationTrainer:
        """A trainer with the recipe's model, data and metric.

        Args:
            args: Training arguments, of `build_arguments` or `arguments_for`.
            train: Rows to train on.
            validation: Rows that every evaluation scores with ROUGE.
            spec: Values of the model. Default: those of a trial, or of the recipe without one.
        """

        def model_init(trial: DecidedTrial | FollowedTrial | None = None) -> Any:
            if spec is not None:
                return self.build_model(spec)
            return self._build_model(TrialSpec.of({}) if trial is None else trial.spec)

        trainer = SummarizationTrainer(
            args=args,
            data_collator=self.family.collator(self.tokenizer),
            train_dataset=self.tokenize(train),
            eval_dataset=self.tokenize(validation),
            processing_class=self.tokenizer,
            model_init=model_init,
            compute_metrics=self._metric_over(validation),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.largest_per_device = largest_on_device(self.recipe)
        return trainer

    def arguments_for(self, spec: TrialSpec, output_dir: Path) -> Seq2SeqTrainingArguments:
        """The recipe's training arguments with hyperparameters in place of fixed values."""
        args = build_arguments(self.recipe, output_dir)
        return with_values(args, spec.training, args.world_size, largest_on_device(self.recipe))

    @property
    def seed(self) -> int:
        """The seed of every training of a search, with which its model is built."""
        return self.recipe.training.settings().get("seed", default_values()["seed"])

    def build_model(self, spec: TrialSpec) -> Any:
        """A fresh model with these hyperparameters, those of decoding in its generation config."""
        model = self._build_model(spec)
        set_decoding(unwrap_peft_model(model).generation_config, spec.generation)
        return model

    def _build_model(self, spec: TrialSpec) -> Any:
        return build_model(self.decided_recipe, self.tokenizer, spec, self.base)

    @property
    def cheap_decoding(self) -> dict[str, Any]:
        """Decoding of the epochs, and of the first stage of a staged search: generation fields."""
        num_beams = self.recipe.search.epoch_eval.num_beams
        return {} if num_beams == "same" else {"num_beams": num_beams, "do_sample": False}

    def build_epoch_evaluation(
        self, dataset: Dataset, validation: Dialogues, n_best: int
    ) -> EpochEvaluation | None:
        """The evaluation after each epoch that the recipe asks for; None: all of it, every time.

        Args:
            dataset: Rows to draw from, by `data.seed`, as token ids.
            validation: The same rows as text.
            n_best: Number of best trials that matter, at least 1.
        """
        section, generation = self.recipe.search.epoch_eval, self.cheap_decoding
        count = len(validation) if section.samples == "all" else section.samples
        if not generation and count >= len(validation):
            return None
        draw, everything = random.Random(self.recipe.data.seed), range(len(validation))
        rows = sorted(draw.sample(everything, min(count, len(everything))))
        return EpochEvaluation(
            dataset=dataset.select(rows),
            compute_metrics=self._metric_over(validation.rows(rows)),
            generation=generation,
            covers_all=len(rows) == len(everything),
            n_best=n_best,
        )

    def decode(self, ids: np.ndarray) -> list[str]:
        """Summaries as text.

        Args:
            ids: Token ids of shape `(rows, tokens)`, padded at the end.
        """
        return decode_texts(self.tokenizer, ids)

    def score(self, summaries: Sequence[str], references: Sequence[list[str]]) -> dict[str, float]:
        """ROUGE F1 of summaries, 0 to 1, by name."""
        return self.rouge.compute(predictions=summaries, references=references)

    def _metric_over(self, split: Dialogues) -> Callable[[EvalPrediction], dict[str, Any]]:
        def compute_metrics(prediction: EvalPrediction) -> dict[str, Any]:
            texts = self.decode(prediction.predictions)
            return {**self.score(texts, split.references), TEXTS: texts}

        return compute_metrics
