"""`OptunaOptimizer`: a recipe in, a study with its results out. What the scripts call."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import torch
from accelerate import PartialState
from datasets import Dataset
from optuna.trial import FrozenTrial
from transformers import (
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Seq2SeqTrainingArguments,
)

from hpo_summarize.arguments import training_fields
from hpo_summarize.attributes import OBJECTIVES
from hpo_summarize.callbacks import find_metric
from hpo_summarize.data import Dialogues, from_dataset, load_splits, tokenize
from hpo_summarize.distributed import on_main
from hpo_summarize.errors import HpoError, Problem, RecipeError
from hpo_summarize.model import (
    build_model,
    check_is_seq2seq,
    check_lengths,
    load_config,
    load_tokenizer,
    model_facts,
    train_tokenizer,
)
from hpo_summarize.progress import SearchProgress
from hpo_summarize.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from hpo_summarize.redact import redact_url
from hpo_summarize.results import write_plots, write_report, write_results
from hpo_summarize.rouge import Rouge
from hpo_summarize.space import SearchSpace, build_space
from hpo_summarize.study import (
    best_trials,
    check_identity,
    default_storage_url,
    identity_of,
    open_study,
    require_complete,
)
from hpo_summarize.trainer import SummarizationTrainer
from hpo_summarize.workers import Worker, Writer

_TRAINED_VOCABULARY = 8000  # Of a tokenizer that is trained for a model from a config.
_EVAL_BATCH_SIZE = 32


class OptunaOptimizer:
    """Searches the hyperparameters of a summariser.

    Args:
        config: A `Recipe`, the path of one, or its content as a mapping.
        train_dataset: Rows with the recipe's text columns, or with `input_ids` and `labels`.
            Default: what the recipe names.
        val_dataset: Likewise; given together with `train_dataset`.
        n_trials: Finished trials wanted in the study. Default: the recipe's (50).
        timeout: Seconds after which no new trial starts. Default: the recipe's (none).
        study_name: Default: the recipe's, or the name of its file.
        storage: URL. Default: the recipe's, or SQLite in the output folder.
        direction: `"maximize"` or `"minimize"`. Default: the recipe's (maximize).
        output_dir: Folder for everything that is written. Default: the recipe's.
        worker: Which of several processes this is, that search together in one storage.

    Raises:
        RecipeError: The recipe is wrong, or the output folder cannot be written.
    """

    def __init__(
        self,
        config: Recipe | str | Path | Mapping[str, Any],
        train_dataset: Dataset | None = None,
        val_dataset: Dataset | None = None,
        n_trials: int | None = None,
        timeout: float | None = None,
        study_name: str | None = None,
        storage: str | None = None,
        direction: str | None = None,
        output_dir: str | Path | None = None,
        worker: Worker | None = None,
    ) -> None:
        recipe = _as_recipe(config)
        given = {"n_trials": n_trials, "timeout": timeout, "study_name": study_name}
        given |= {"storage": storage, "direction": direction}
        self.recipe = _with_settings(recipe, given, output_dir)
        self.output_dir = Path(self.recipe.output_dir)
        self.worker = worker or Worker()
        self.writer = Writer(self.output_dir, eligible=PartialState().is_main_process)
        if (train_dataset is None) != (val_dataset is None):
            raise HpoError("train_dataset and val_dataset are given together, or neither of them")
        self._datasets = None if train_dataset is None else (train_dataset, val_dataset)
        self.study_name = self.recipe.search.study_name or "study"

    # The parts, each made when it is first needed.

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
    def trainer(self) -> SummarizationTrainer:
        """The trainer of all trials."""
        data = [tokenize(split, self.tokenizer, self.recipe.data) for split in self.splits]
        trainer = SummarizationTrainer(
            args=build_arguments(self.recipe, self.output_dir / "trials" / self.study_name),
            data_collator=DataCollatorForSeq2Seq(self.tokenizer),
            train_dataset=data[0],
            eval_dataset=data[1],
            processing_class=self.tokenizer,
            model_init=self._build_model,
            compute_metrics=self._compute_metrics,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.set_up_search(self.create_search_space, self._compute_objective, _folder_name)
        return trainer

    @functools.cached_property
    def study(self) -> optuna.Study:
        """The study in its storage, with the recipe's values waiting as trial 0 where it is new."""
        search = self.recipe.search
        study = open_study(
            search,
            self.study_name,
            search.storage or default_storage_url(self.output_dir),
            [search.direction] * len(search.objectives),
            baseline=self.space.baseline(),
            worker=self.worker.number,
        )
        texts = (text for split in self.splits for text in split.texts())
        check_identity(study, identity_of(self.recipe, texts))
        if study.user_attrs.get(OBJECTIVES) != search.objectives:
            study.set_user_attr(OBJECTIVES, search.objectives)
        return study

    @functools.cached_property
    def rouge(self) -> Rouge:
        """The metric.

        Raises:
            HpoError: The package of its tokenizer is missing.
        """
        try:
            return Rouge(**self.recipe.rouge.model_dump())
        except ImportError as error:
            raise RecipeError([Problem("rouge.tokenizer", str(error))]) from None

    # What a user calls.

    def prepare(self) -> None:
        """Checks and loads everything that a search needs, cheap things first.

        Raises:
            HpoError: Something is wrong; nothing has been trained yet.
        """
        on_main(lambda: _make_writable(self.output_dir))
        _ = self.space, self.rouge, self.splits, self.tokenizer
        on_main(lambda: bool(self.study))
        _ = self.trainer
        recipe = self.recipe
        if recipe.search.storage:
            shown = redact_url(recipe.search.storage)
            recipe = _with_settings(recipe, {"storage": shown}, None)
        if self.writer.is_here():
            (self.output_dir / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")

    def optimize(self) -> optuna.Study | None:
        """Runs the search until the study holds `n_trials` finished trials.

        Returns:
            The study; None on a process that only follows the main one of its group.

        Results and plots are written in any case, also when the search fails or is interrupted.

        Raises:
            SearchFailed: No trial came to an end, or three in a row failed for one reason.
            KeyboardInterrupt: Ctrl-C; what has finished is kept, and a new run goes on from there.
        """
        self.prepare()
        if not PartialState().is_main_process:
            self.trainer.follow()
            return None
        search = self.recipe.search
        progress = SearchProgress(
            self.study, search.n_trials, search.objectives, self.writer.is_here
        )
        self.trainer.add_callback(progress)
        try:
            self.trainer.hyperparameter_search(
                hp_space=self.create_search_space,
                compute_objective=self._compute_objective,
                n_trials=search.n_trials,
                backend="optuna",
                hp_name=_folder_name,
                study=self.study,
                timeout=search.timeout,
                keep_trials=search.keep_trials,
                callbacks=[progress.on_trial_end, self._write_after_trial],
            )
        finally:
            self.trainer.remove_callback(progress)
            if self.writer.is_here():
                self.save_results(self.output_dir)
                self.plot_optimization_history(self.output_dir)
        return self.study

    def create_search_space(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Samples the values of a trial."""
        return self.space.sample(trial)

    def objective(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Trains one trial and returns its value; an objective for `optuna.Study.optimize`."""
        return self.trainer.run_trial(trial)

    def get_best_params(self) -> dict[str, Any]:
        """The values of the best trial; with several objectives, of the best in the first.

        Raises:
            SearchFailed: No trial is complete.
        """
        return dict(self._best_trial().params)

    def get_best_value(self) -> float:
        """The value of the best trial; with several objectives, of the first objective."""
        return self._best_trial().values[0]

    def save_results(self, output_dir: str | Path) -> None:
        """Writes `best_params.json`, `all_trials.csv` and `study_stats.json`."""
        write_results(self.study, Path(output_dir))

    def plot_optimization_history(self, output_dir: str | Path) -> list[Path]:
        """Writes the plots and `report.html`; returns their paths."""
        folder = Path(output_dir)
        report = write_report(self.study, folder, dump_recipe(self.recipe))
        return [*write_plots(self.study, folder), report]

    # Pieces of the trainer.

    def _build_model(self, trial: optuna.trial.BaseTrial | None) -> Any:
        values = {} if trial is None else trial.params
        return build_model(self.recipe, self.tokenizer, values)

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        texts = self.tokenizer.batch_decode(prediction.predictions, skip_special_tokens=True)
        references = self.splits[1].references
        return self.rouge.compute(
            predictions=[text.strip() for text in texts], references=references
        )

    def _compute_objective(self, metrics: dict[str, float]) -> float | list[float]:
        values = [find_metric(metrics, name) for name in self.recipe.search.objectives]
        return values if len(values) > 1 else values[0]

    def _write_after_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if self.writer.is_here():
            self.save_results(self.output_dir)

    def _best_trial(self) -> FrozenTrial:
        require_complete(self.study)
        sign = 1 if self.recipe.search.direction == "maximize" else -1
        return max(best_trials(self.study), key=lambda trial: sign * trial.values[0])


def create_optuna_optimizer(
    config: Recipe | str | Path | Mapping[str, Any], **kwargs: Any
) -> OptunaOptimizer:
    """An `OptunaOptimizer`; the arguments are its own."""
    return OptunaOptimizer(config, **kwargs)


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


def _folder_name(trial: optuna.trial.BaseTrial | FrozenTrial) -> str:
    return f"trial-{trial.number}"


def _as_recipe(config: Recipe | str | Path | Mapping[str, Any]) -> Recipe:
    if isinstance(config, Recipe):
        return config
    return load_recipe(config) if isinstance(config, str | Path) else parse_recipe(config)


def _with_settings(
    recipe: Recipe, search: Mapping[str, Any], output_dir: str | Path | None
) -> Recipe:
    """The recipe with arguments of a caller in the place of its own values, checked again."""
    content = recipe.model_dump(exclude_unset=True)
    content.setdefault("search", {}).update({k: v for k, v in search.items() if v is not None})
    if output_dir is not None:
        content["output_dir"] = str(output_dir)
    return parse_recipe(content)


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        message = f"the folder {folder} cannot be written ({error.strerror}); choose another one"
        raise RecipeError([Problem("output_dir", message)]) from None
