"""`OptunaOptimizer`: a recipe in, a study with its results out. What the scripts call."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from accelerate import PartialState
from datasets import Dataset
from optuna.trial import FrozenTrial

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import as_recipe, dump_recipe, with_settings
from hpo_summarize.config.schema import Recipe
from hpo_summarize.dry_run import refusals, try_arguments, try_settings
from hpo_summarize.errors import HpoError, StudyMoved, UnwrittenResults, storage_failure
from hpo_summarize.io import write_text
from hpo_summarize.launch.processes import join_group, on_all, on_main
from hpo_summarize.launch.workers import Worker
from hpo_summarize.launch.writer import Writer
from hpo_summarize.output_dir import clear_debug_folder, prepare_folder
from hpo_summarize.redact import redact_url
from hpo_summarize.reporting.plots import write_plots
from hpo_summarize.reporting.progress import SearchProgress
from hpo_summarize.reporting.report import write_report
from hpo_summarize.reporting.summary import DECODING_FOLDER, write_results
from hpo_summarize.stages import Decoder, DecodingSearch, find_finalists
from hpo_summarize.studies import SearchStudies
from hpo_summarize.study.run import wait_for_running
from hpo_summarize.study.samplers import prune_after
from hpo_summarize.study.trials import best_trials, require_complete, values_of
from hpo_summarize.study.user_attrs import DECODING_STUDY, MAX_NEW_TOKENS
from hpo_summarize.training.arguments import build_arguments
from hpo_summarize.training.callbacks import find_metric
from hpo_summarize.training.devices import remember, remembered
from hpo_summarize.training.trainer import SummarizationTrainer

# The share of a timeout that is left to the second stage of a staged search.
_DECODING_SHARE = 0.2


class OptunaOptimizer:
    """Searches the hyperparameters of a summariser.

    Args:
        config: A `Recipe`, the path of one, or its content as a mapping.
        train_dataset: Rows with the recipe's text columns, or with `input_ids` and `labels`; the
            recipe needs no `data.train` then. Default: what the recipe names.
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
        needs_data = train_dataset is None
        recipe = as_recipe(config, needs_data)
        given = {"n_trials": n_trials, "timeout": timeout, "study_name": study_name}
        given |= {"storage": storage, "direction": direction}
        self.recipe = with_settings(recipe, given, output_dir, needs_data)
        self.output_dir = Path(self.recipe.output_dir)
        self.worker = worker or Worker()
        if worker is None:
            join_group()  # Of one process, where no launcher has started others.
        self.writer = Writer(self.output_dir, PartialState().is_main_process, self.worker)
        if (train_dataset is None) != (val_dataset is None):
            raise HpoError("train_dataset and val_dataset are given together, or neither of them")
        datasets = None if train_dataset is None else (train_dataset, val_dataset)
        for name, rows in (("train_dataset", train_dataset), ("val_dataset", val_dataset)):
            if not isinstance(rows, Dataset | None):
                raise HpoError(
                    f"{name} must be a datasets.Dataset, got a {type(rows).__name__}; make one "
                    "with Dataset.from_list(rows) or Dataset.from_pandas(frame)"
                )
        self.experiment = Experiment(self.recipe, datasets, share_base=True)
        self.studies = SearchStudies(self.experiment, self.worker.number)
        self._prepared = False

    @functools.cached_property
    def trainer(self) -> SummarizationTrainer:
        """The trainer of all trials."""
        train, validation = self.experiment.splits
        args = build_arguments(self.recipe, self.studies.folder)
        trainer = self.experiment.build_trainer(args, train, validation)
        trainer.epoch_evaluation = self.experiment.build_epoch_evaluation(
            trainer.eval_dataset, validation, n_best=max(self.recipe.search.n_kept, 1)
        )
        trainer.prune_after = prune_after(self.recipe.search.pruner)
        if self.recipe.search.decode == "staged":
            trainer.trial_decoding = self.experiment.cheap_decoding
        trainer.set_up_search(self.create_search_space, self._compute_objective, self._folder_name)
        return trainer

    @property
    def study(self) -> optuna.Study:
        """The study in its storage; it is made where it is new."""
        return self.studies.first

    # What a user calls.

    def prepare(self, debug: bool = False) -> None:
        """Checks and loads everything that a search needs, once, cheap things first.

        The study is made last, so that a recipe that cannot run does not get into it.

        Args:
            debug: Start from scratch, without the results of an earlier debug run.

        Raises:
            HpoError: Something is wrong; nothing has been trained yet.
        """
        if self._prepared:
            return
        on_main(lambda: prepare_folder(self.output_dir, debug))
        on_all(self._load)
        if not debug:
            on_main(self.studies.check)
        on_all(self._dry_run)
        if debug:
            on_main(lambda: clear_debug_folder(self.output_dir, self.worker))
        self.experiment.max_new_tokens = on_main(self._begin)
        self._prepared = True

    def _load(self) -> None:
        """Loads what a search needs, but for the model; a part of `prepare` on every process."""
        experiment = self.experiment
        _ = experiment.space, experiment.rouge
        try_arguments(
            self.recipe,
            lambda: build_arguments(self.recipe, self.output_dir),
            experiment.whole_space,
        )
        _ = experiment.splits, experiment.tokenizer

    def _dry_run(self) -> None:
        with refusals("training"):
            _ = self.trainer
        try_settings(self.trainer, self.experiment.whole_space, self.recipe)

    def _begin(self) -> int:
        """Makes the study; returns the most tokens of its summaries."""
        length = self.study.user_attrs[MAX_NEW_TOKENS]
        self.experiment.max_new_tokens = length
        if self.writer.is_here():
            searched = MAX_NEW_TOKENS in self.recipe.space
            recipe = self.recipe if searched else self.experiment.decided_recipe
            write_text(self.output_dir / "recipe.yaml", dump_recipe(recipe))
        return length

    def optimize(self) -> optuna.Study | None:
        """Runs the search until the study holds `n_trials` finished trials.

        Results and plots are written in any case, also when the search fails or is interrupted.

        Returns:
            The study; None on a process that only follows the main one of its group.

        Raises:
            SearchFailed: No trial is complete, or three in a row failed for one reason.
            RunStopped: A disk or a file server refused to read or write; the trial was requeued.
            UnwrittenResults: The search is done, and a file of its results could not be written.
            KeyboardInterrupt: Ctrl-C; what has finished is kept, and a new run continues.
        """
        self.prepare()
        is_main = PartialState().is_main_process
        failure = self._lead() if is_main else self._follow()
        # The others end when everything is written: a launcher ends all after the first that fails.
        on_main(lambda: _raise(failure))
        return self.study if is_main else None

    def _lead(self) -> HpoError | None:
        start, failure = time.monotonic(), None
        try:
            if self.recipe.search.decode == "staged":
                decoder = Decoder(self.experiment, self.trainer)
                with decoder.leading():
                    self._search_training()
                    self._search_decoding(decoder, start)
            else:
                self._search_training()
        except HpoError as error:
            failure = error
        finally:
            moved = isinstance(failure, StudyMoved)  # The folder may be another search's by now.
            unwritten = None if moved else self._write_pages()
        return failure or unwritten

    def _follow(self) -> HpoError | None:
        try:
            self.trainer.follow()
        except HpoError as error:
            if not error.shared:
                raise
            # The main process raises it again when everything is written.
        if self.recipe.search.decode == "staged":
            Decoder(self.experiment, self.trainer).follow()
        return None

    def _search_training(self) -> None:
        search = self.recipe.search
        progress = SearchProgress(self.study, search.n_trials, search.objectives, self.writer)
        self.trainer.add_callback(progress)
        share = 1 - _DECODING_SHARE if search.decode == "staged" else 1
        try:
            with progress.running():
                self.trainer.hyperparameter_search(
                    hp_space=self.create_search_space,
                    compute_objective=self._compute_objective,
                    n_trials=search.n_trials,
                    backend="optuna",
                    hp_name=self._folder_name,
                    study=self.study,
                    timeout=search.timeout and search.timeout * share,
                    keep_trials=search.n_kept,
                    callbacks=[progress.on_trial_end, self._write_after_trial],
                )
        finally:
            self.trainer.remove_callback(progress)

    def _search_decoding(self, decoder: Decoder, start: float) -> None:
        search = self.recipe.search
        wait_for_running(self.study)
        best = find_finalists(self.study, self.output_dir, search.staged.n_models)
        storage, number = self.studies.storage, self.worker.number
        decoding = DecodingSearch(self.experiment, decoder, best, self.study, storage, number)
        self.study.set_user_attr(DECODING_STUDY, decoding.study.study_name)
        if (sizes := remembered(self.study)) and remembered(decoding.study) is None:
            remember(decoding.study, sizes)
        progress = SearchProgress(
            decoding.study, search.staged.n_trials, search.objectives, self.writer, "decoding"
        )
        rest = search.timeout and max(start + search.timeout - time.monotonic(), 0)
        with progress.running():
            decoding.run(rest, [progress.on_trial_end, self._write_after_trial])

    def create_search_space(self, trial: optuna.trial.BaseTrial) -> dict[str, Any]:
        """Samples the values of a trial."""
        return self.experiment.space.sample(trial)

    def objective(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Trains one trial and returns its value; an objective for `optuna.Study.optimize`."""
        return self.trainer.run_trial(trial)

    def get_best_params(self) -> dict[str, Any]:
        """The values of the best trial; with several objectives, of the best in the first.

        Raises:
            StudyError: No search has run yet.
            SearchFailed: No trial is complete.
        """
        return values_of(self._best_trial())

    def get_best_value(self) -> float:
        """The value of the best trial; with several objectives, of the first objective."""
        return self._best_trial().values[0]

    def save_results(self, output_dir: str | Path) -> None:
        """Writes `best_params.json`, `all_trials.csv` and `study_stats.json`."""
        study = self.studies.made()
        write_results(study, Path(output_dir), decoding=self.studies.second())

    def plot_optimization_history(self, output_dir: str | Path) -> list[Path]:
        """Writes the plots and `report.html`; returns their paths."""
        folder, study = Path(output_dir), self.studies.made()
        decoding = self.studies.second()
        paths = write_plots(study, folder)
        if decoding is not None:
            paths += write_plots(decoding, folder / DECODING_FOLDER)
        return [*paths, write_report(study, folder, dump_recipe(self.recipe), decoding)]

    # Pieces of the trainer.

    def _compute_objective(self, metrics: dict[str, float]) -> float | list[float]:
        values = [find_metric(metrics, name) for name in self.recipe.search.objectives]
        return values if len(values) > 1 else values[0]

    def _folder_name(self, trial: optuna.trial.BaseTrial | FrozenTrial) -> str:
        return str(self.studies.folder_of(trial).relative_to(self.studies.folder))

    def _write_after_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if self.writer.is_here():
            with self.writer.turn():
                self.save_results(self.output_dir)

    def _write_pages(self) -> UnwrittenResults | None:
        """Writes all results, those that other programs read first.

        Returns:
            What could not be written. It must not hide the end of the search itself.
        """
        try:
            self._write_changes()
        except Exception as error:  # Whatever a disk, or a library that draws, may raise.
            reason = storage_failure(error) or f"{type(error).__name__}: {error}"
            return UnwrittenResults(
                f"not all results could be written: {redact_url(reason)}. Fix the cause and run "
                "the same command again, which writes them without training again"
            )
        return None

    def _write_changes(self) -> None:
        """Writes everything, unless another worker has done so since anything changed."""
        studies = (self.studies.made(), self.studies.second())
        trials = [t for study in studies if study for t in study.get_trials(deepcopy=False)]
        states = Counter(trial.state.name for trial in trials)
        with self.writer.once(f"pages of {sorted(states.items())}") as is_new:
            if is_new:
                self.save_results(self.output_dir)
                self.plot_optimization_history(self.output_dir)

    def _best_trial(self) -> FrozenTrial:
        require_complete(self.studies.made())
        sign = 1 if self.recipe.search.direction == "maximize" else -1
        return max(best_trials(self.studies.final()), key=lambda trial: sign * trial.values[0])


def create_optuna_optimizer(
    config: Recipe | str | Path | Mapping[str, Any], **kwargs: Any
) -> OptunaOptimizer:
    """An `OptunaOptimizer`; the arguments are its own."""
    return OptunaOptimizer(config, **kwargs)


def _raise(error: HpoError | None) -> None:
    if error is not None:
        raise error
