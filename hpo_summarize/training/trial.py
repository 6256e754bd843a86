"""A trial: its plan, its epochs so far, and how it ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size

from hpo_summarize.errors import HpoError
from hpo_summarize.launch.processes import on_all
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.study.user_attrs import SUMMARIES
from hpo_summarize.training.devices import Sizes

Value = float | tuple[float, ...]
Metrics = Mapping[str, float]
Objective = Callable[[dict[str, float]], float | Sequence[float]]
OUT_OF_MEMORY = "out of memory"


@dataclass(frozen=True)
class Epoch:
    """One evaluation during the training of a trial.

    Attributes:
        epoch: Finished epochs, with a fraction where an evaluation came in the middle of one.
        value: The objective, or a tuple of them.
        epoch_value: Value of the evaluation after the epoch, where `value` is one that was measured
            again in full; else None.
    """

    epoch: float
    value: Value
    epoch_value: Value | None = None

    @property
    def first(self) -> float:
        """The objective, or the first one."""
        return self._values[0]

    @property
    def is_finite(self) -> bool:
        """Whether every objective is a finite number."""
        return all(math.isfinite(value) for value in self._values)

    @property
    def _values(self) -> tuple[float, ...]:
        return self.value if isinstance(self.value, tuple) else (self.value,)


@dataclass(frozen=True)
class TrialPlan:
    """All that is decided before a trial runs; broadcast to every process that trains it.

    Attributes:
        number: Number of the trial.
        spec: The values that `hp_space` returned; each of them is applied.
        sampled: All that was sampled, by name; `model_init` may read it, too.
        n_objectives: Number of objectives of the study.
        maximize: Whether the first objective is maximized.
        folder: Its checkpoints are kept here.
        checkpoint: Checkpoint from which an interrupted trial is resumed; None: from the start.
        epochs: Its evaluations so far, in order.
        fitting: Per-device batches for training and evaluation, once larger ones ran out of memory.
    """

    number: int
    spec: TrialSpec
    sampled: Mapping[str, Any]
    n_objectives: int
    maximize: bool
    folder: str
    checkpoint: str | None = None
    epochs: tuple[Epoch, ...] = ()
    fitting: Sizes | None = None


@dataclass
class TrialRun:
    """A trial in training.

    Attributes:
        trial: Optuna's trial; on the main process alone one of a study.
        plan: What was decided before.
        compute_objective: From the metrics of an evaluation to the objective, or several.
        epochs: The evaluations so far.
    """

    trial: optuna.trial.BaseTrial
    plan: TrialPlan
    compute_objective: Objective
    epochs: list[Epoch] = field(default_factory=list)

    def objective(self, metrics: Metrics) -> Any:
        """The objective of an evaluation: a number, or several."""
        return on_all(lambda: self.compute_objective(dict(metrics)))

    def record(
        self, epoch: float | None, metrics: Metrics, summaries: Mapping[str, Any] | None = None
    ) -> None:
        """Adds one evaluation.

        Args:
            epoch: Finished epochs.
            metrics: Its metrics.
            summaries: What its texts are like (`Summaries.describe`).
        """
        self.epochs.append(Epoch(epoch or 0.0, as_value(self.objective(metrics))))
        if self.latest_is_best():
            self.record_summaries(summaries)

    def record_summaries(self, summaries: Mapping[str, Any] | None) -> None:
        """Writes to the trial what the texts of its value are like."""
        if summaries is not None:
            self.note(SUMMARIES, summaries)

    def note(self, name: str, value: Any) -> None:
        """Sets a user attribute of the trial, on the main process."""
        if isinstance(self.trial, optuna.Trial):
            self.trial.set_user_attr(name, value)

    @staticmethod
    def check_loss(loss: torch.Tensor, accelerator: Accelerator) -> None:
        """Fails a trial whose training loss is not finite; no later one would be.

        Raises:
            TrialFailed: It is not finite on one of the processes.
        """
        finite = torch.isfinite(loss).all()
        if accelerator.num_processes > 1:
            finite = accelerator.gather(finite).all()
        if not finite:
            raise TrialFailed("the training loss is not a finite number")

    def best_epoch(self) -> Epoch:
        """The evaluation with the best objective; with several objectives, the best in the first.

        Raises:
            TrialFailed: No evaluation gave a finite number.
        """
        finite = [epoch for epoch in self.epochs if epoch.is_finite]
        if not finite:
            raise TrialFailed("the objective was never a finite number")
        sign = 1 if self.plan.maximize else -1
        return max(finite, key=lambda epoch: sign * epoch.first)

    def latest_is_best(self) -> bool:
        """Whether the last evaluation is the best one so far."""
        latest = self.epochs[-1]
        return latest.is_finite and self.best_epoch() is latest


@dataclass(frozen=True)
class TrialEnd:
    """How the training of a trial ended: with its best epoch, or with a message.

    Attributes:
        best: The best epoch of a trial that is complete.
        message: Why a trial is not complete; empty for one that is.
        failed: Whether it ended in an error, and was not pruned.
        smaller: Per-device batches to try next, where memory ran out and there are smaller ones.
    """

    best: Epoch | None = None
    message: str = ""
    failed: bool = False
    smaller: Sizes | None = None


class TrialFailed(Exception):
    """A trial has failed for a reason that lies in its values."""


def as_value(value: float | Sequence[float]) -> Value:
    """An objective as a number, several of them as a tuple."""
    return tuple(value) if isinstance(value, Sequence) else value


def failure_reason(error: Exception) -> str:
    """One line on why a trial failed, the same for the same cause.

    Raises:
        HpoError: `error` itself, if it is a mistake in the set-up that every trial would repeat.
    """
    if isinstance(error, HpoError):
        raise error
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, TrialFailed):
        return str(error)
    first_line = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first_line}"


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine has no memory left."""
    kinds = torch.OutOfMemoryError | MemoryError
    return isinstance(error, kinds) or should_reduce_batch_size(error)
