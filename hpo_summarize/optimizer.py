"""`OptunaOptimizer`: a recipe in, a study with its results out. What the scripts call."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from optuna.trial import FrozenTrial

from hpo_summarize.attributes import MAX_NEW_TOKENS, OBJECTIVES
from hpo_summarize.callbacks import find_metric
from hpo_summarize.distributed import on_main
from hpo_summarize.errors import HpoError, Problem, RecipeError
from hpo_summarize.experiment import Experiment
from hpo_summarize.progress import SearchProgress
from hpo_summarize.recipe import Recipe, dump_recipe, load_recipe, parse_recipe
from hpo_summarize.redact import redact_url
from hpo_summarize.results import write_plots, write_report, write_results
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
        # On a CPU a bare `PartialState()` forms no group, and every process would be the main one
        # until the trainer is made.
        state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
        self.writer = Writer(self.output_dir, eligible=state.is_main_process)
        if (train_dataset is None) != (val_dataset is None):
            raise HpoError("train_dataset and val_dataset are given together, or neither of them")
        datasets = None if train_dataset is None else (train_dataset, val_dataset)
        self.experiment = Experiment(self.recipe, datasets)
        self.study_name = self.recipe.search.study_name or "study"

    @functools.cached_property
    def trainer(self) -> SummarizationTrainer:
        """The trainer of all trials."""
        folder = self.output_dir / "trials" / self.study_name
        trainer = self.experiment.build_trainer(folder, *self.experiment.splits)
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
            baseline=self.experiment.space.baseline(),
            worker=self.worker.number,
        )
        recorded = study.user_attrs.get(MAX_NEW_TOKENS)
        if recorded is not None and self.recipe.generation.max_new_tokens is None:
            self.experiment.max_new_tokens = recorded
        texts = (text for split in self.experiment.splits for text in split.texts())
        check_identity(study, identity_of(self.experiment.decided_recipe, texts))
        if recorded is None:
            study.set_user_attr(MAX_NEW_TOKENS, self.experiment.max_new_tokens)
        if study.user_attrs.get(OBJECTIVES) != search.objectives:
            study.set_user_attr(OBJECTIVES, search.objectives)
        return study

    # What a user calls.

    def prepare(self) -> None:
        """Checks and loads everything that a search needs, cheap things first.

        Raises:
            HpoError: Something is wrong; nothing has been trained yet.
        """
        on_main(lambda: _make_writable(self.output_dir))
        experiment = self.experiment
        _ = experiment.space, experiment.rouge, experiment.splits, experiment.tokenizer
        experiment.max_new_tokens = on_main(lambda: self.study.user_attrs[MAX_NEW_TOKENS])
        _ = self.trainer
        searched = MAX_NEW_TOKENS in self.recipe.space
        recipe = self.recipe if searched else experiment.decided_recipe
        if recipe.search.storage:
            shown = redact_url(recipe.search.storage)
            recipe = _with_settings(recipe, {"storage": shown}, None)
        if self.writer.is_here():
            (self.output_dir / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")

    def optimize(self) -> optuna.Study | None:
        """Runs the search until the study holds `n_trials` finished trials.

        Results and plots are written in any case, also when the search fails or is interrupted.

        Returns:
            The study; None on a process that only follows the main one of its group.

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
        return self.experiment.space.sample(trial)

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
