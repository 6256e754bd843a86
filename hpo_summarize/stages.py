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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo_summarize.components import Experiment
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.errors import HpoError, StudyError, stopping_at_storage_failure
from hpo_summarize.generation import Summaries
from hpo_summarize.launch.processes import broadcast, on_all
from hpo_summarize.search_space import SearchSpace, build_space
from hpo_summarize.study.run import StudyCallback, TrialError, open_study, run_study
from hpo_summarize.study.trials import best_trials, values_of
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
from hpo_summarize.training.devices import Sizes, halved, remember, remembered
from hpo_summarize.training.group_failure import Group
from hpo_summarize.training.trainer import SummarizationTrainer
from hpo_summarize.training.trial import failure_reason, is_out_of_memory


@dataclass(frozen=True)
class Finalist:
    """A trained model of the first stage.

    Attributes:
        number: Of its trial.
        params: Its hyperparameters by name.
        epoch: The epoch that its weights are of.
        checkpoint: Folder with the weights.
    """

    number: int
    params: dict[str, Any]
    epoch: float
    checkpoint: Path


def find_finalists(
    study: optuna.Study, folder_of: Callable[[FrozenTrial], Path], count: int
) -> list[Finalist]:
    """The best trials of the first stage with their weights, at most `count`, best first.

    Raises:
        StudyError: The weights of one of them are not here. Another worker, which has them, would
            search other models.
    """
    sign = 1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else -1
    best = sorted(
        best_trials(study, count), key=lambda trial: (-sign * trial.values[0], trial.number)
    )
    found, missing = [], []
    for trial in best[:count]:
        checkpoints = sorted(folder_of(trial).glob("checkpoint-*"))
        if len(checkpoints) == 1:
            epoch = trial.user_attrs[BEST_EPOCH]
            found.append(Finalist(trial.number, values_of(trial), epoch, checkpoints[0]))
        else:
            missing.append(str(trial.number))
    if missing:
        raise StudyError(
            "decoding cannot be searched: the weights of the best trials (missing: "
            f"{', '.join(missing)}) are not all in {folder_of(best[0]).parent}; run this where "
            "they are, or give all machines one folder"
        )
    return found


@dataclass(frozen=True)
class Part:
    """Rows that are decoded in one go.

    Attributes:
        number: Number of the trial that they are decoded for.
        finalist: The model.
        values: What was sampled for its decoding.
        rows: Positions in the validation split.
        sizes: Per-device batch sizes, of which the second one counts here.
    """

    number: int
    finalist: Finalist
    values: Mapping[str, Any]
    rows: Sequence[int]
    sizes: Sizes


class Decoder:
    """Decodes the validation split with one finalist after the other.

    In a group the main process calls `decode`, and the others `follow` it.

    Args:
        experiment: The parts of the recipe.
        trainer: Has the trials of the first stage, and decodes.
    """

    def __init__(self, experiment: Experiment, trainer: SummarizationTrainer) -> None:
        self._experiment, self._trainer = experiment, trainer
        self._loaded: int | None = None
        self._sizes = self.own_sizes
        self._group: Group | None = None

    @property
    def own_sizes(self) -> Sizes:
        """The per-device batch sizes of the recipe."""
        args = self._trainer.args
        return args.per_device_train_batch_size, args.per_device_eval_batch_size

    @property
    def is_alone(self) -> bool:
        """Whether one process decodes by itself."""
        return self._trainer.args.world_size == 1

    # On the main process.

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Lets the processes that `follow` go when the main one has nothing more to decode.

        They wait from the end of the first stage on, also where it has failed.
        """
        try:
            yield
        except KeyboardInterrupt:
            raise  # The others are interrupted, too.
        except Exception:
            self._trainer.dismiss_group()
            raise
        self._trainer.dismiss_group()

    def begin(self, study: optuna.Study) -> None:
        """Lets every process write to the study why it fails alone."""
        if not self.is_alone:
            self._group = broadcast(Group(study))

    def decode(self, part: Part) -> Summaries:
        """The summaries of the rows, in their order, decoded by all processes."""
        broadcast(part)
        return self._decode(part)

    def smaller(self, error: Exception) -> Sizes | None:
        """The per-device batches to try after an error; None if it is not for want of memory."""
        return halved(self._sizes) if is_out_of_memory(error) else None

    def fail(self, number: int, error: Exception) -> None:
        """Drops the model, and ends this process where the others do not know of its error.

        Args:
            number: Number of the trial.
            error: What happened.
        """
        if self._group is not None and not (isinstance(error, HpoError) and error.shared):
            self._group.leave(number, error, self.smaller(error))
        self._loaded = None

    # On the others.

    def follow(self) -> None:
        """Decodes with the main process of the group, until it has no more trials."""
        self._group = broadcast()  # None where the first stage has failed.
        while self._group is not None and (part := broadcast()) is not None:
            try:
                self._decode(part)
            except Exception as error:
                self.fail(part.number, error)

    def _decode(self, part: Part) -> Summaries:
        finalist, self._sizes = part.finalist, part.sizes
        if self._loaded != finalist.number:
            on_all(lambda: self._trainer.load_trial(finalist.params, finalist.checkpoint))
            self._loaded = finalist.number
        fixed = self._experiment.decided_recipe.generation.model_dump()
        data = self._trainer.eval_dataset.select(part.rows)
        decoding = {"use_cache": True, **fixed, **part.values}
        ids = self._trainer.summarise(data, decoding, self._sizes[1])
        return Summaries(self._experiment.decode(ids), self._trainer.n_cut)


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
        self._decoder.begin(self.study)
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
