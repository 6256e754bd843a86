"""The value of a trial: a cheap score after every epoch, and one full score at its end."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from datasets import Dataset
from optuna.trial import TrialState
from transformers import EvalPrediction
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.config.parameters import default_values
from hpo_summarize.decoder import decoding_with
from hpo_summarize.launch.processes import on_all, on_main
from hpo_summarize.study.trials import counts
from hpo_summarize.study.user_attrs import EPOCH_VALUE, SUMMARIES
from hpo_summarize.training.corrected import CorrectedSeq2SeqTrainer
from hpo_summarize.training.trial import Epoch, TrialBeaten, TrialFailed, TrialRun, frozen

# Before so many trials were measured in full, nobody knows how far the two values lie apart.
MIN_FULL = 5
# Of a normal distribution 0.13% lie more than this many standard deviations above the mean.
SPREADS = 3.0


def why_beaten(study: optuna.Study, epoch_value: float, n_best: int) -> str | None:
    """Says why a trial cannot be among the best of its study; None if it still can.

    Args:
        study: A study of one objective.
        epoch_value: The trial's best value from the evaluations after its epochs.
        n_best: Number of best trials that matter, at least 1.
    """
    sign = 1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1
    full = [
        (sign * trial.values[0], sign * trial.user_attrs[EPOCH_VALUE], trial.number)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if EPOCH_VALUE in trial.user_attrs and counts(trial)
    ]
    if len(full) < max(MIN_FULL, n_best):
        return None
    limit = highest_value(sign * epoch_value, [value - early for value, early, _ in full])
    wanted, _, number = sorted(full, reverse=True)[n_best - 1]
    if limit >= wanted:
        return None
    return (
        f"not measured in full: with {epoch_value:.4f} after its best epoch it would come to "
        f"{sign * limit:.4f} at best, and trial {number} has {sign * wanted:.4f}"
    )


def highest_value(epoch_value: float, gains: Sequence[float]) -> float:
    """The highest value that a full evaluation is likely to give; higher is better.

    Args:
        epoch_value: Value from the evaluation after the trial's best epoch.
        gains: By how much the full evaluation of each earlier trial, two or more, exceeded that.
    """
    return epoch_value + statistics.fmean(gains) + SPREADS * statistics.stdev(gains)


@dataclass(frozen=True)
class EpochEvaluation:
    """A cheaper evaluation for the epochs of a trial, by which trials are compared and pruned.

    Attributes:
        dataset: Rows that are decoded after each epoch.
        compute_metrics: Function that scores them, as the trainer's own does its evaluation set.
        generation: Fields of the generation config that take the place of the trial's own.
        covers_all: Whether `dataset` has all rows of the evaluation set.
        n_best: Number of best trials that matter, default 1; what cannot be among them is not
            measured in full.
    """

    dataset: Dataset
    compute_metrics: Callable[[EvalPrediction], dict[str, Any]]
    generation: Mapping[str, Any]
    covers_all: bool
    n_best: int = 1


class MeasuringTrainer(CorrectedSeq2SeqTrainer):
    """Measures the epochs of a trial by `epoch_evaluation`, and its best epoch in full.

    Attributes:
        epoch_evaluation: What is measured after each epoch. None, the default: every epoch is
            measured in full, and nothing is measured again.
    """

    compute_objective: Any
    eval_dataset: Any
    epoch_evaluation: EpochEvaluation | None = None
    _run: TrialRun | None = None

    def _objective(self, metrics: Mapping[str, float]) -> Any:
        """The objective of an evaluation: a number, or several."""
        return on_all(lambda: self.compute_objective(dict(metrics)))

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluates an epoch of a training in the cheap way."""
        if self.epoch_evaluation is None:
            return super()._evaluate(*args, **kwargs)
        with self._looking_cheaply(self.epoch_evaluation):
            return super()._evaluate(*args, **kwargs)

    @contextmanager
    def _looking_cheaply(self, cheap: EpochEvaluation) -> Iterator[None]:
        own = self.eval_dataset, self.compute_metrics
        self.eval_dataset = cheap.dataset
        self.compute_metrics = self._without_padding_index(cheap.compute_metrics)
        try:
            with decoding_with(self.model, cheap.generation):
                yield
        finally:
            self.eval_dataset, self.compute_metrics = own

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Keeps the checkpoint of the epoch with the best objective of a trial.

        The parent goes by `metric_for_best_model`, which may be another metric or direction. Its
        best value stays in `state.best_metric`, where callbacks such as early stopping read it.
        """
        best_step = self.state.best_global_step
        is_new_best = super()._determine_best_metric(metrics, trial)
        if self._run is not None:
            is_new_best = self._run.latest_is_best()
            self.state.best_global_step = self.state.global_step if is_new_best else best_step
        return is_new_best

    def _measure(self, run: TrialRun) -> Epoch:
        """The best epoch of a trained trial with the value of the trial.

        Raises:
            TrialBeaten: It cannot be among the best any more and is not measured in full.
            TrialFailed: The value is not a finite number.
        """
        best, cheap = run.best_epoch(), self.epoch_evaluation
        if cheap is None:
            return best
        if self._is_full(cheap):
            return dataclasses.replace(best, epoch_value=best.value)
        if run.plan.n_objectives == 1:
            trial: Any = run.trial  # On the main process, the only one that asks, one of a study.
            reason = on_main(lambda: why_beaten(trial.study, best.first, cheap.n_best))
            if reason is not None:
                raise TrialBeaten(reason)
        best = self._bring_back(run, best)
        value = frozen(self._objective(self.evaluate()))
        self._record_summaries(run.trial)
        measured = dataclasses.replace(best, value=value, epoch_value=best.value)
        if not measured.is_finite:
            raise TrialFailed("the objective was not a finite number in the full evaluation")
        return measured

    def _record_summaries(self, trial: optuna.trial.BaseTrial) -> None:
        """Writes to a trial what the summaries of the last evaluation are like."""
        if isinstance(trial, optuna.Trial) and self.summaries is not None:
            trial.set_user_attr(SUMMARIES, self.summaries)

    def _is_full(self, cheap: EpochEvaluation) -> bool:
        """Whether the cheap evaluation of this trial leaves nothing out."""
        own = unwrap_peft_model(self.model).generation_config
        # A field that is None has its default in `generate`.
        return cheap.covers_all and all(
            (getattr(own, name, None) or default_values().get(name)) == value
            for name, value in cheap.generation.items()
        )

    def _bring_back(self, run: TrialRun, best: Epoch) -> Epoch:
        """Gives the model the weights of an epoch again; without checkpoints only the last has any.

        Returns:
            The epoch whose weights the model has now.
        """
        if best is run.epochs[-1]:
            return best
        if self.state.best_model_checkpoint is None:
            return run.epochs[-1]
        self._load_from_checkpoint(self.state.best_model_checkpoint)
        return best
