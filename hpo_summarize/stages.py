"""The second stage of `decode: staged`: decoding alone is searched, on the best trained models.

A trial is one evaluation of a model that the first stage has trained and kept. The rows are decoded
in the same shuffled order in every trial, in the same blocks of a few rows (of one where there are
few), and the mean score of each block is reported. A trial ends early where a signed-rank test on
the blocks so far says that it is worse than the best one (Optuna's `WilcoxonPruner`).
"""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna

from hpo_summarize.components import Experiment
from hpo_summarize.errors import HpoError, stopping_at_storage_failure
from hpo_summarize.generation import Summaries
from hpo_summarize.launch.processes import broadcast, on_all
from hpo_summarize.search_space import SearchSpace, build_space
from hpo_summarize.study.run import StudyCallback, TrialError, open_study, run_study
from hpo_summarize.study.trials import Candidate, best_trials, candidates_of
from hpo_summarize.study.user_attrs import (
    BEST_EPOCH,
    FAILURE,
    N_DECODED,
    OBJECTIVES,
    STAGE,
    SUMMARIES,
    TRAINED_TRIAL,
    VALUES,
)
from hpo_summarize.training.ddp import dismiss
from hpo_summarize.training.devices import Sizes, halved, remember, remembered
from hpo_summarize.training.group_failure import Group
from hpo_summarize.training.runner import load_trial
from hpo_summarize.training.trainer import SummarizationTrainer
from hpo_summarize.training.trial import failure_reason, is_out_of_memory

# A trial decodes the rows in so many parts, and asks the pruner after each; a part has at least so
# many blocks, since the test says little about fewer.
_N_PARTS = 8
_MIN_BLOCKS = 8
_MAX_BLOCKS = 50  # Each is a write to the storage, of some 5 to 10 ms.
_P_THRESHOLD = 0.1  # Optuna's default: a trial is worse with this probability of an error.


def find_finalists(study: optuna.Study, output_dir: Path, count: int) -> list[Candidate]:
    """The best trials of the first stage with their weights, at most `count`, best first.

    Raises:
        StudyError: The weights of one of them are not here. Another worker, which has them, would
            search other models.
    """
    best = {trial.number for trial in best_trials(study, count)}
    finalists = [one for one in candidates_of(study) if one.number in best][:count]
    for finalist in finalists:
        finalist.checkpoint(output_dir)
    return finalists


class Decoder:
    """Decodes rows of the validation split with one finalist after the other.

    In a group the main process calls `decode`, and the others `follow` it.

    Args:
        experiment: The parts of the recipe.
        trainer: Has trained the first stage, and decodes.
    """

    def __init__(self, experiment: Experiment, trainer: SummarizationTrainer) -> None:
        args = trainer.args
        self._experiment, self._trainer = experiment, trainer
        self._sizes: Sizes = args.per_device_train_batch_size, args.per_device_eval_batch_size
        self._loaded: int | None = None
        self._study: optuna.Study | None = None
        self._group: Group | None = None

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Ends the waiting of the processes that `follow`, also where the first stage fails."""
        try:
            yield
        except KeyboardInterrupt:
            raise  # The others are interrupted, too.
        except Exception:
            dismiss()
            raise
        dismiss()

    def begin(self, study: optuna.Study) -> None:
        """Decodes for the trials of `study`, where the batch sizes that fit are remembered."""
        self._study, self._sizes = study, remembered(study) or self._sizes
        if self._trainer.args.world_size > 1:
            self._group = broadcast(Group(study))

    def decode(
        self, number: int, finalist: Candidate, values: Mapping[str, Any], rows: Sequence[int]
    ) -> Summaries:
        """The summaries of some rows, decoded by all processes.

        Out of memory, one process tries half as many rows at once; a group ends its launch.

        Args:
            number: Number of the trial.
            finalist: The model.
            values: What was sampled for its decoding.
            rows: Positions in the validation split.
        """
        broadcast((number, finalist, values, rows, self._sizes))
        try:
            return self._decode(finalist, values, rows)
        except Exception as error:
            smaller = self._smaller(error)
            if self._study is None or self._group is not None or smaller is None:
                raise
            remember(self._study, smaller)
            self._sizes = smaller
        return self.decode(number, finalist, values, rows)

    def follow(self) -> None:
        """Decodes with the main process of the group, until it has no more trials."""
        self._group = broadcast()  # None where the first stage has failed.
        while self._group is not None and (message := broadcast()) is not None:
            number, finalist, values, rows, self._sizes = message
            try:
                self._decode(finalist, values, rows)
            except Exception as error:
                self.fail(number, error)

    def fail(self, number: int, error: Exception) -> None:
        """Drops the model; ends this process if the others of its group do not have the error.

        Args:
            number: Number of the trial.
            error: What happened.
        """
        if self._group is not None and not (isinstance(error, HpoError) and error.shared):
            self._group.leave(number, error, self._smaller(error))
        self._loaded = None

    def _decode(
        self, finalist: Candidate, values: Mapping[str, Any], rows: Sequence[int]
    ) -> Summaries:
        trainer = self._trainer
        if self._loaded != finalist.number:
            folder = Path(self._experiment.recipe.output_dir)
            on_all(lambda: load_trial(trainer, finalist.params, finalist.checkpoint(folder)))
            self._loaded = finalist.number
        trainer.args.per_device_eval_batch_size = self._sizes[1]
        fixed = self._experiment.decided_recipe.generation.model_dump()
        data = trainer.eval_dataset.select(rows).remove_columns("labels")
        ids = trainer.predict(data, **{"use_cache": True, **fixed, **values}).predictions
        return Summaries(self._experiment.decode(ids), trainer.n_cut)

    def _smaller(self, error: Exception) -> Sizes | None:
        return halved(self._sizes) if is_out_of_memory(error) else None


class DecodingSearch:
    """Searches the decoding of finalists in a study of its own, beside that of the first stage.

    Args:
        experiment: The parts of the recipe.
        decoder: Decodes with the finalists.
        finalists: Trained models, best first.
        first: The study of the first stage. The second one is called `NAME.decoding.` and the
            numbers of the finalists, so that other finalists begin another study.
        storage: URL of both studies.
        worker: Number of this process among those that search together.
    """

    def __init__(
        self,
        experiment: Experiment,
        decoder: Decoder,
        finalists: Sequence[Candidate],
        first: optuna.Study,
        storage: str,
        worker: int = 0,
    ) -> None:
        self.recipe, self._validation = experiment.recipe, experiment.splits[1]
        self.finalists = {finalist.number: finalist for finalist in finalists}
        numbers = "-".join(str(number) for number in sorted(self.finalists))
        self.study_name = f"{first.study_name}.decoding.{numbers}"
        self._experiment, self._decoder = experiment, decoder
        self._storage, self._opened, self._worker = storage, first._storage, worker
        self._folder = finalists[0].checkpoint(Path(self.recipe.output_dir)).parents[1]

    @functools.cached_property
    def space(self) -> SearchSpace:
        """The decoding part of the recipe's space."""
        return build_space(self.recipe, self._experiment.facts, stage="decoding")

    @functools.cached_property
    def study(self) -> optuna.Study:
        """The study; it begins with the recipe's own decoding and baselines on each finalist."""
        search = self.recipe.search
        points = [self.space.baseline(given) for given in ({}, *search.baselines)]
        several = len(self.finalists) > 1
        models = [{TRAINED_TRIAL: number} if several else {} for number in self.finalists]
        study = open_study(
            search,
            self.study_name,
            self._storage,
            [search.direction] * len(search.objectives),
            baselines=[{**point, **model} for point in points for model in models],
            worker=self._worker,
            opened=self._opened,
        )
        if search.pruner is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.pruner = optuna.pruners.WilcoxonPruner(p_threshold=_P_THRESHOLD)
        study.set_user_attr(OBJECTIVES, search.objectives)
        study.set_user_attr(STAGE, "decoding")
        return study

    def run(self, timeout: float | None, callbacks: Sequence[StudyCallback]) -> None:
        """Runs trials up to the recipe's number; on the main process of a group.

        Args:
            timeout: Seconds after which no new trial starts; None: none.
            callbacks: Called after each trial, as in `Study.optimize`.
        """
        n_trials = self.recipe.search.staged.n_trials
        self._decoder.begin(self.study)
        run_study(self.study, self.objective, n_trials, timeout, callbacks, folder=self._folder)

    def objective(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Decodes the validation split with a trial's values and returns its mean scores.

        Raises:
            optuna.TrialPruned: It is worse than the best one, or failed (its attribute `failure`
                holds the reason).
        """
        numbers = sorted(self.finalists)
        several = len(numbers) > 1
        number = trial.suggest_categorical(TRAINED_TRIAL, numbers) if several else numbers[0]
        finalist, values = self.finalists[number], self.space.sample(trial)
        trial.set_user_attr(TRAINED_TRIAL, finalist.number)
        trial.set_user_attr(BEST_EPOCH, finalist.epoch)
        trial.set_user_attr(VALUES, {**finalist.params, **values})
        try:
            with stopping_at_storage_failure(self._folder):
                return self._evaluate(trial, finalist, values)
        except optuna.TrialPruned:
            raise
        except Exception as error:
            self._decoder.fail(trial.number, error)
            reason = failure_reason(error)
            trial.set_user_attr(FAILURE, reason)
            if len(self.recipe.search.objectives) > 1:
                raise TrialError(reason) from None
            raise optuna.TrialPruned(reason) from None

    def _evaluate(
        self, trial: optuna.Trial, finalist: Candidate, values: Mapping[str, Any]
    ) -> float | tuple[float, ...]:
        names, references = self.recipe.search.objectives, self._validation.references
        blocks = shuffled_blocks(len(references), self.recipe.data.seed)
        size = max(-(-len(blocks) // _N_PARTS), _MIN_BLOCKS)
        scores: dict[int, dict[str, float]] = {}  # By row.
        summaries = Summaries([], 0)
        for start in range(0, len(blocks), size):
            part = blocks[start : start + size]
            rows = [row for block in part for row in block]
            decoded = self._decoder.decode(trial.number, finalist, values, rows)
            summaries += decoded
            new = self._experiment.rouge.score_rows(decoded.texts, [references[n] for n in rows])
            scores.update(zip(rows, new, strict=True))
            if len(names) > 1:
                continue
            for place, block in enumerate(part, start):
                trial.report(fmean(scores[row][names[0]] for row in block), place)
            if len(scores) < len(references) and trial.should_prune():
                trial.set_user_attr(N_DECODED, len(scores))
                trial.set_user_attr(SUMMARIES, summaries.describe())
                raise optuna.TrialPruned(f"worse than the best after {len(scores)} dialogues")
        trial.set_user_attr(SUMMARIES, summaries.describe())
        means = tuple(fmean(row[name] for row in scores.values()) for name in names)
        return means if len(means) > 1 else means[0]


def shuffled_blocks(n_rows: int, seed: int) -> list[list[int]]:
    """All rows in shuffled blocks, the same ones for the same seed; at most `_MAX_BLOCKS`."""
    order = list(range(n_rows))
    random.Random(seed).shuffle(order)
    size = -(-n_rows // _MAX_BLOCKS)
    return [order[start : start + size] for start in range(0, n_rows, size)]
