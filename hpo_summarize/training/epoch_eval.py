"""The value of a trial: a cheap score after every epoch, and one full score at its end."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from datasets import Dataset
from optuna.trial import TrialState
from transformers import EvalPrediction
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.config.parameters import default_values
from hpo_summarize.decoder import decoding_with
from hpo_summarize.launch.processes import on_main
from hpo_summarize.study.trials import counts
from hpo_summarize.study.user_attrs import BEATEN, EPOCH_VALUE
from hpo_summarize.training.trial import Epoch, TrialFailed, TrialRun, as_value

if TYPE_CHECKING:
    from hpo_summarize.training.trainer import SummarizationTrainer

# With fewer trials measured in full, the distance of the two values cannot be estimated.
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


@contextmanager
def evaluating(trainer: SummarizationTrainer, cheap: EpochEvaluation | None) -> Iterator[None]:
    """Lets a trainer evaluate in the cheap way for a while; None: in its own way."""
    if cheap is None:
        yield
        return
    own = trainer.eval_dataset, trainer.compute_metrics
    trainer.eval_dataset, trainer.compute_metrics = cheap.dataset, cheap.compute_metrics
    try:
        with decoding_with(trainer.model, cheap.generation):
            yield
    finally:
        trainer.eval_dataset, trainer.compute_metrics = own


def full_score(trainer: SummarizationTrainer, run: TrialRun) -> Epoch:
    """The best epoch of a trained trial, with the value of the trial.

    Raises:
        optuna.TrialPruned: It cannot be among the best and is not measured in full.
        TrialFailed: The value is not a finite number.
    """
    best, cheap = run.best_epoch(), trainer.epoch_evaluation
    if cheap is None:
        return best
    if _is_full(trainer, cheap):
        return dataclasses.replace(best, epoch_value=best.value)
    if run.plan.n_objectives == 1:
        trial: Any = run.trial  # On the main process, the only one that asks, one of a study.
        reason = on_main(lambda: why_beaten(trial.study, best.first, cheap.n_best))
        if reason is not None:
            run.note(BEATEN, reason)
            raise optuna.TrialPruned(reason)
    best = _load_epoch(trainer, run, best)
    value = as_value(run.objective(trainer.evaluate()))
    run.record_summaries(trainer.summaries)
    measured = dataclasses.replace(best, value=value, epoch_value=best.value)
    if not measured.is_finite:
        raise TrialFailed("the objective was not a finite number in the full evaluation")
    return measured


def _is_full(trainer: SummarizationTrainer, cheap: EpochEvaluation) -> bool:
    """Whether the cheap evaluation of this trial leaves nothing out."""
    own = unwrap_peft_model(trainer.model).generation_config
    # A field that is None has its default in `generate`.
    return cheap.covers_all and all(
        (getattr(own, name, None) or default_values().get(name)) == value
        for name, value in cheap.generation.items()
    )


def _load_epoch(trainer: SummarizationTrainer, run: TrialRun, epoch: Epoch) -> Epoch:
    """Loads the weights of an epoch; without checkpoints the model has those of the last one.

    Returns:
        The epoch whose weights the model has now.
    """
    if epoch is run.epochs[-1]:
        return epoch
    if trainer.state.best_model_checkpoint is None:
        return run.epochs[-1]
    trainer._load_from_checkpoint(trainer.state.best_model_checkpoint)
    return epoch
