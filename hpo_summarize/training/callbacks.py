"""Trainer callbacks: pruning by epoch, for our own search and for anybody's training script."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from hpo_summarize.errors import HpoError, MissingMetric
from hpo_summarize.launch.processes import on_main

Metrics = Mapping[str, float]

# `state.epoch` is a sum of fractions; this much below a whole number still counts as one.
_EPOCH_TOLERANCE = 1e-6


class OptunaPruningCallback(TrainerCallback):
    """Reports one metric per epoch to an Optuna trial and ends the training when it is pruned.

    The step of a report is the number of finished epochs, so that trials with different batch
    sizes are compared at the same point of their training, and `n_warmup_steps` of a pruner means
    epochs. Where evaluation runs more often than that, the first one after each epoch counts. Where
    the training ends inside an epoch, the last evaluation is reported for that epoch, and does not
    prune. Evaluations outside of training are not reported.

    With several evaluation sets (`eval_dataset` is a dict) the metrics of all of them are taken
    together. A function of them is called when all sets have been evaluated, which is when the next
    step begins: a trial is pruned then, after the checkpoint of the epoch was written.

    With several processes the main one reports and decides, and all of them stop together. Either
    every process is given a `TorchDistributedTrial` of optuna-integration, or the main one the
    trial and the others None.

    Args:
        trial: The trial; its study must have one objective. None: on a process that is not the
            main one.
        monitor: Name of the metric, for example `"eval_rougeL"` (the prefix may be left out; with
            several sets `"eval_NAME_rougeL"`), or a function from the metrics to the value to
            report.
        prune_after: Share of the optimizer steps of the training, 0 to 1, before which the pruner
            is not asked. By default it alone decides when it begins.

    Raises:
        ValueError: The study of the trial has several objectives, which Optuna cannot prune, or
            `prune_after` is no share.
        HpoError: From the training, if its arguments ask for no evaluations.
        MissingMetric: From the training, if no evaluation set has such a metric.
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
        trial: optuna.trial.BaseTrial | None,
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
        self._trial: Any = trial
        self._monitor = monitor
        self._prune_after = prune_after
        self._training = False
        self._last_step = 0
        self._metrics: dict[str, float] = {}  # Of the latest evaluations, until they are reported.
        self._epoch = 0.0  # When those were.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Raises an `HpoError` where the arguments ask for no evaluations."""
        if args.eval_strategy == IntervalStrategy.NO:
            raise HpoError(
                "OptunaPruningCallback reports evaluations, and there are none: eval_strategy is "
                "'no' in the training arguments; set eval_strategy=\"epoch\", or train without "
                "this callback"
            )
        self._training = True
        self._last_step = int(
            (state.epoch or 0) + _EPOCH_TOLERANCE
        )  # Of a training that is resumed.
        self._metrics = {}

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Reports the metric of a finished epoch and raises `TrialPruned` if the pruner says so."""
        if not self._training:
            return
        if state.epoch != self._epoch:
            self._metrics, self._epoch = {}, state.epoch or 0
        self._metrics.update(metrics)
        name = self._monitor
        is_found = isinstance(name, str) and not {name, f"eval_{name}"}.isdisjoint(self._metrics)
        if is_found or not _is_of_one_set_of_several(metrics):
            self._report_epoch(state)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reports what needs the metrics of all evaluation sets: they are complete now."""
        if self._metrics:
            self._report_epoch(state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Reports the last evaluation; later ones are no part of the training."""
        if not self._training:
            return
        if self._metrics:
            self._report_epoch(state)
        unfinished = math.ceil(self._epoch - _EPOCH_TOLERANCE)
        if self._metrics and unfinished > self._last_step:
            self._report(unfinished, may_end=False)
        self._training = False

    def _report_epoch(self, state: TrainerState) -> None:
        step = int(self._epoch + _EPOCH_TOLERANCE)
        if step > self._last_step:
            self._report(step, self._may_end(state))

    def _report(self, step: int, may_end: bool) -> None:
        value = find_metric(self._metrics, self._monitor)
        self._metrics, self._last_step = {}, step
        # A trial of optuna-integration exchanges its values itself, on every process at once.
        ask = (lambda decide: decide()) if _is_collective(self._trial) else on_main
        if ask(lambda: report(self._trial, value, step, may_end)):
            raise optuna.TrialPruned(f"pruned after epoch {step} with a value of {value:.4g}")

    def _may_end(self, state: TrainerState) -> bool:
        """Whether enough steps are behind the training, whatever its number of epochs."""
        return state.global_step >= (self._prune_after - _EPOCH_TOLERANCE) * state.max_steps


def _is_of_one_set_of_several(metrics: Metrics) -> bool:
    """Whether more metrics may follow: the Trainer puts the name of a set before its metrics.

    It evaluates the sets of a dict one after the other, each with a time of its own.
    """
    times = [name for name in metrics if name.endswith("_runtime")]
    return bool(times) and "eval_runtime" not in times


def _is_collective(trial: optuna.trial.BaseTrial | None) -> bool:
    """Whether every process of a group must call each method of a trial at the same point."""
    module = sys.modules.get("optuna_integration.pytorch_distributed")
    return module is not None and isinstance(trial, module.TorchDistributedTrial)


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

    The pruner is not called where the trial may not end: some pruners keep a state.
    """
    trial.report(value, step)
    return may_end and trial.should_prune()
