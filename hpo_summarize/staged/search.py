"""The study of the second stage.

A trial is one evaluation of a model that the first stage has trained and kept. The rows are decoded
in the same shuffled order in every trial, in the same blocks of a few rows (of one where there are
few), and the mean score of each block is reported. A trial ends early where a signed-rank test on
the blocks so far says that it is worse than the best one (Optuna's `WilcoxonPruner`).
"""

from __future__ import annotations

import functools
import random
import warnings
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import optuna

from hpo_summarize.attributes import (
    BEST_EPOCH,
    FAILURE,
    N_DECODED,
    OBJECTIVES,
    STAGE,
    SUMMARIES,
    TRAINED_TRIAL,
    VALUES,
)
from hpo_summarize.data import Dialogues
from hpo_summarize.decoding import Summaries
from hpo_summarize.errors import stopping_at_storage_failure
from hpo_summarize.experiment import Experiment
from hpo_summarize.space import SearchSpace, build_space
from hpo_summarize.staged.decoder import Decoder, Part
from hpo_summarize.staged.finalists import Finalist
from hpo_summarize.study import StudyCallback, TrialError, open_study, run_study
from hpo_summarize.trainer.device_batches import remember, remembered
from hpo_summarize.trainer.trial_run import failure_reason

# A trial decodes the rows in so many parts, with a look at the pruner after each; a part has at
# least so many blocks, since the test says little about fewer.
_N_PARTS = 8
_MIN_BLOCKS = 8
_MAX_BLOCKS = 50  # Each is a write to the storage, of some 5 to 10 ms.
_P_THRESHOLD = 0.1  # Optuna's default: a trial is worse with this probability of an error.


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
        finalists: Sequence[Finalist],
        first: optuna.Study,
        storage: str,
        worker: int = 0,
    ) -> None:
        self.recipe = experiment.recipe
        self.finalists = {finalist.number: finalist for finalist in finalists}
        numbers = "-".join(str(number) for number in sorted(self.finalists))
        self.study_name = f"{first.study_name}.decoding.{numbers}"
        self._experiment, self._decoder = experiment, decoder
        self._storage, self._opened, self._worker = storage, first._storage, worker
        self._folder = finalists[0].checkpoint.parents[1]

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
        with self._decoder.listening(self.study):
            run_study(self.study, self.objective, n_trials, timeout, callbacks, folder=self._folder)

    def objective(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Decodes the validation split with a trial's values and returns its mean scores.

        Raises:
            optuna.TrialPruned: It is worse than the best one, or failed (its attribute `failure`
                holds the reason).
        """
        finalist, values = self._sample(trial)
        trial.set_user_attr(TRAINED_TRIAL, finalist.number)
        trial.set_user_attr(BEST_EPOCH, finalist.epoch)
        trial.set_user_attr(VALUES, {**finalist.params, **values})
        try:
            with stopping_at_storage_failure(finalist.checkpoint):
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

    def _sample(self, trial: optuna.Trial) -> tuple[Finalist, dict[str, Any]]:
        numbers = sorted(self.finalists)
        number = numbers[0]
        if len(numbers) > 1:
            number = trial.suggest_categorical(TRAINED_TRIAL, numbers)
        return self.finalists[number], self.space.sample(trial)

    def _evaluate(
        self, trial: optuna.Trial, finalist: Finalist, values: Mapping[str, Any]
    ) -> float | tuple[float, ...]:
        names, n_rows = self.recipe.search.objectives, len(self._validation)
        blocks = shuffled_blocks(n_rows, self.recipe.data.seed)
        size = max(-(-len(blocks) // _N_PARTS), _MIN_BLOCKS)
        scores: list[dict[str, float]] = []
        summaries = Summaries([], 0)
        for start in range(0, len(blocks), size):
            part = blocks[start : start + size]
            rows = [row for block in part for row in block]
            decoded = self._decode(trial.number, finalist, values, rows)
            summaries += decoded
            new = self._score(decoded.texts, part)
            scores += [score for block in new for score in block]
            if len(names) > 1:
                continue
            for place, block in enumerate(new, start):
                trial.report(fmean(score[names[0]] for score in block), place)
            if len(scores) < n_rows and trial.should_prune():
                trial.set_user_attr(N_DECODED, len(scores))
                trial.set_user_attr(SUMMARIES, summaries.describe())
                raise optuna.TrialPruned(f"worse than the best after {len(scores)} dialogues")
        trial.set_user_attr(SUMMARIES, summaries.describe())
        means = tuple(fmean(score[name] for score in scores) for name in names)
        return means if len(means) > 1 else means[0]

    def _score(
        self, summaries: Sequence[str], blocks: Sequence[Sequence[int]]
    ) -> list[list[dict[str, float]]]:
        """ROUGE of every row of some blocks."""
        references = [self._validation.references[row] for block in blocks for row in block]
        scores = iter(self._experiment.rouge.score_rows(summaries, references))
        return [[next(scores) for _ in block] for block in blocks]

    def _decode(
        self, number: int, finalist: Finalist, values: Mapping[str, Any], rows: Sequence[int]
    ) -> Summaries:
        """Out of memory, one process tries half as many rows at once; a group ends its launch."""
        sizes = remembered(self.study) or self._decoder.own_sizes
        try:
            return self._decoder.decode(Part(number, finalist, values, rows, sizes))
        except Exception as error:
            smaller = self._decoder.smaller(error)
            if smaller is None or not self._decoder.is_alone:
                raise
            remember(self.study, smaller)
        return self._decode(number, finalist, values, rows)

    @property
    def _validation(self) -> Dialogues:
        return self._experiment.splits[1]


def shuffled_blocks(n_rows: int, seed: int) -> list[list[int]]:
    """All rows in shuffled blocks, the same ones for the same seed; at most `_MAX_BLOCKS`."""
    order = list(range(n_rows))
    random.Random(seed).shuffle(order)
    size = -(-n_rows // _MAX_BLOCKS)
    return [order[start : start + size] for start in range(0, n_rows, size)]
