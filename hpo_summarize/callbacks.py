"""Trainer callbacks: pruning by epoch, for our own search and for anybody's training script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hpo_summarize.distributed import on_main
from hpo_summarize.errors import HpoError, MissingMetric

Metrics = Mapping[str, float]

# `state.epoch` is a sum of fractions; this much below a whole number still counts as one.
_EPOCH_TOLERANCE = 1e-6


class OptunaPruningCallback(TrainerCallback):
    """Reports one metric per epoch to an Optuna trial and ends the training when it is pruned.

    The step of a report is the number of finished epochs, so that trials with different batch
    sizes are compared at the same point of their training, and `n_warmup_steps` of a pruner means
    epochs. Where evaluation runs more often than that, the first one after each epoch counts.
    Evaluations before the end of the first epoch, and outside of training, are not reported.

    With several processes the main one reports and decides, and all of them stop together.

    Args:
        trial: The trial; its study must have one objective.
        monitor: Name of the metric, for example `"eval_rougeL"` (the prefix may be left out), or a
            function from the metrics of an evaluation to the value to report.
        prune_after: Share of the optimizer steps of the training, 0 to 1, before which the pruner
            is not asked. By default it alone decides when it begins.

    Raises:
        ValueError: The study of the trial has several objectives, which Optuna cannot prune, or
            `prune_after` is no share.
        HpoError: From the training, if its arguments ask for no evaluations.
        MissingMetric: From the training, if an evaluation has no such metric.
        optuna.TrialPruned: From the training, if the pruner stops the trial.

    Example:
        >>> def objective(trial):
        ...     args = Seq2SeqTrainingArguments("out", eval_strategy="epoch", ...)
        ...     callback = OptunaPruningCallback(trial, "eval_rougeL")
        ...     trainer = Seq2SeqTrainer(model, args, ..., callbacks=[callback])
        ...     trainer.train()
        ...     return trainer.evaluate()["eval_rougeL"]
    """

    def __init__(
        self,
        trial: optuna.trial.BaseTrial,
        monitor: str | Callable[[Metrics], float] = "eval_rougeL",
        prune_after: float = 0.0,
    ) -> None:
        study = getattr(trial, "study", None)
        if study is not None and len(study.directions) > 1:
            raise ValueError(
                f"Optuna prunes only with one objective, and this study has "
                f"{len(study.directions)}; train these trials without OptunaPruningCallback"
            )
        if not 0 <= prune_after <= 1:
            raise ValueError(
                f"prune_after is a share of the training, from 0 to 1, and not {prune_after!r}; "
                "give 1/3 for the first third of it"
            )
        self._trial = trial
        self._monitor = monitor
        self._prune_after = prune_after
        self._training = False
        self._last_step = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts to listen; raises an `HpoError` where there will be nothing to hear."""
        if args.eval_strategy == IntervalStrategy.NO:
            raise HpoError(
                "OptunaPruningCallback reports evaluations, and there are none: eval_strategy is "
                "'no' in the training arguments; set eval_strategy=\"epoch\", or train without "
                "this callback"
            )
        self._training = True
        self._last_step = 0

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops to listen: an evaluation after the training is no epoch of it."""
        self._training = False

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Reports the metric of a finished epoch and raises `TrialPruned` if the pruner says so."""
        step = int((state.epoch or 0) + _EPOCH_TOLERANCE)
        if not self._training or step <= self._last_step:
            return
        self._last_step = step
        value = find_metric(metrics, self._monitor)
        if on_main(lambda: report(self._trial, value, step, self._may_end(state))):
            raise optuna.TrialPruned(f"pruned after epoch {step} with a value of {value:.4g}")

    def _may_end(self, state: TrainerState) -> bool:
        """Whether enough steps are behind the training, whatever its number of epochs."""
        return state.global_step >= (self._prune_after - _EPOCH_TOLERANCE) * state.max_steps


def find_metric(metrics: Metrics, monitor: str | Callable[[Metrics], float]) -> float:
    """The monitored value in the metrics of one evaluation.

    Raises:
        MissingMetric: There is no such metric; the message lists those there are.
    """
    if callable(monitor):
        return monitor(dict(metrics))  # It may take some out, and the Trainer needs them all.
    for name in (monitor, f"eval_{monitor}"):
        if name in metrics:
            return metrics[name]
    seen = ", ".join(sorted(metrics)) or "none at all"
    raise MissingMetric(
        f"the evaluation has no metric '{monitor}'; it has {seen}. Give one of those as monitor, "
        "or return it from compute_metrics"
    )


def report(trial: optuna.trial.BaseTrial, value: float, step: int, may_end: bool = True) -> bool:
    """Reports `value` at `step` and returns whether the pruner wants to stop the trial.

    It is not even asked where the trial may not end: some pruners keep what they have answered.
    """
    trial.report(value, step)
    return may_end and trial.should_prune()
