"""One training with the values of a trial, up to its best epoch, and the scores of several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hpo_summarize.components import Experiment
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.errors import HpoError, stopping_at_storage_failure
from hpo_summarize.launch.processes import on_main
from hpo_summarize.launch.signals import is_lost_process
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.study.trials import Candidate
from hpo_summarize.training.arguments import follows_metric, within_device
from hpo_summarize.training.checkpoints import last_checkpoint
from hpo_summarize.training.devices import halved, remember_in, remembered_in
from hpo_summarize.training.evaluation import draw_as_loader
from hpo_summarize.training.trial import OUT_OF_MEMORY, failure_reason

# ROUGE F1 by split (`validation`, `test`) and measure, 0 to 1.
Scores = dict[str, dict[str, float]]


# An epoch is a sum of fractions, and ends within this of a whole number.
_ROUNDING = 1e-6
FITTING = "device_batches.json"  # Per-device batches that fit.


class StopAfter(TrainerCallback):
    """Ends a training after a number of epochs, and leaves its schedule as it is.

    The learning rate of each step is that of a training of all epochs, which is what the trial had
    when it reached its best one. With the number of epochs itself lowered, the rate would fall to
    its end in fewer steps, and the model would be another one.

    Args:
        epochs: Number of epochs, with a fraction where a trial was measured within its epochs.
    """

    def __init__(self, epochs: float) -> None:
        self._epochs = epochs

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops at the step that ends the last wanted epoch."""
        if (state.epoch or 0.0) >= self._epochs - _ROUNDING:
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes no checkpoint at the end: a run that went on from it would take one step more."""
        if control.should_training_stop:
            control.should_save = False


class SkipEvaluations(TrainerCallback):
    """Leaves out the evaluations of a training, with the same dropout as in a training with them.

    The data loader of an evaluation draws one random number.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draws that number in place of the evaluation."""
        if control.should_evaluate:
            control.should_evaluate = False
            draw_as_loader()

    on_epoch_end = on_step_end


class TrainingProgress(TrainerCallback):
    """Reports the loss of each epoch.

    Args:
        say: Function that gets one line for each epoch.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Takes the loss from the log."""
        if logs and "loss" in logs:
            epochs = f"{state.epoch or 0:g}/{state.num_train_epochs:g}"
            self._say(f"  epoch {epochs}  training loss {logs['loss']:.4f}")


@dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        candidate: The trial that gives the values, the schedule and the number of epochs.
        seed: Seed of the first weights, of the order of the rows, and of dropout.
    """

    candidate: Candidate
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"trial-{self.candidate.number}-seed-{self.seed}"

    def arguments(self, experiment: Experiment, folder: Path) -> Seq2SeqTrainingArguments:
        """Its training arguments: those of the trial, with a checkpoint after every epoch."""
        args = experiment.arguments_for(TrialSpec.of(self.candidate.params), folder)
        fields = {"save_strategy": "epoch", "save_total_limit": 1, "save_only_model": False}
        return dataclasses.replace(args, seed=self.seed, load_best_model_at_end=False, **fields)

    def run(
        self,
        experiment: Experiment,
        folder: Path,
        train: Dialogues,
        validation: Dialogues,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> Any:
        """Trains, from the last checkpoint in `folder` on if there is one, and returns the model.

        Out of memory, one process retries with half the per-device batch and twice the
        accumulation. Several processes end first, since the others are blocked in an exchange; the
        same command continues then. What fits is noted beside `folder`, for all trainings there.

        The trial's evaluations are left out, unless its schedule follows them.

        Raises:
            HpoError: It ended in an error, or with weights that are not finite.
        """
        args, fitting = self.arguments(experiment, folder), folder.parent / FITTING
        while True:
            sizes = on_main(lambda: remembered_in(fitting))
            trainer = experiment.build_trainer(
                within_device(args, *sizes) if sizes else args,
                train,
                validation,
                TrialSpec.of(self.candidate.params),
            )
            if follows_metric(args):
                trainer.epoch_evaluation = experiment.build_epoch_evaluation(
                    trainer.eval_dataset, validation, n_best=1
                )
            else:
                trainer.add_callback(SkipEvaluations())
            for callback in (StopAfter(self.candidate.epoch), *callbacks):
                trainer.add_callback(callback)
            try:
                checkpoint = on_main(lambda: last_checkpoint(folder, args.world_size))
                with stopping_at_storage_failure(folder):
                    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
                break
            except Exception as error:
                if is_lost_process(error):
                    raise
                self._note_smaller(trainer.args, failure_reason(error), fitting)
            del trainer
        # Without mixed precision, as the model that is loaded from its folder.
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        on_main(lambda: self._check_finite(model))
        return model

    def _note_smaller(self, args: Seq2SeqTrainingArguments, reason: str, path: Path) -> None:
        """Notes the per-device batches to continue with after a failure.

        Raises:
            HpoError: There are none, or other processes are blocked.
        """
        state, is_memory = PartialState(), reason == OUT_OF_MEMORY
        where = "" if state.num_processes == 1 else f" on process {state.process_index}"
        sizes = args.per_device_train_batch_size, args.per_device_eval_batch_size
        smaller = halved(sizes) if is_memory and sizes[0] > 1 else None
        if smaller is None:
            step = "set data.max_dialogue_tokens lower" if is_memory else "fix the cause"
            raise HpoError(
                f"{self.name}: the training failed{where} ({reason}); {step} and run it again"
            )
        remember_in(path, smaller)
        if where:
            raise HpoError(
                f"{self.name}: {reason}{where}. The launch ends here; the same command continues "
                f"with {smaller[0]} examples at once on each device and more accumulation"
            )

    def _check_finite(self, model: torch.nn.Module) -> None:
        if not all(torch.isfinite(weights).all() for weights in model.parameters()):
            raise HpoError(
                f"{self.name}: the training diverged (non-finite weights); leave this seed out of "
                "train.seeds, or take another trial with --trial"
            )


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        training: What was trained.
        folder: Folder of its model.
        scores: Scores of its saved model, by split and measure.
        summaries: What its summaries are like, by split (`Summaries.describe`).
    """

    training: Training
    folder: Path
    scores: Scores
    summaries: dict[str, dict[str, Any]]


def of_trial(trained: Sequence[Trained], number: int) -> list[Trained]:
    """The trainings of one trial, one for each seed."""
    return [one for one in trained if one.training.candidate.number == number]


def spread(trained: Sequence[Trained]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and sample standard deviation of several trainings, by split and measure.

    Args:
        trained: At least two.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for split, measures in trained[0].scores.items():
        for name in measures:
            values = [one.scores[split][name] for one in trained]
            both = {"mean": fmean(values), "deviation": stdev(values)}
            found.setdefault(split, {})[name] = both
    return found


def best_of(trained: Sequence[Trained], measure: str, maximize: bool) -> Trained:
    """Of the trial with the best mean over the seeds the best seed, on the validation split.

    Args:
        trained: One alone needs no scores.
        measure: Name of the first objective.
        maximize: Whether more of it is better.
    """
    if len(trained) == 1:
        return trained[0]
    sign = 1 if maximize else -1

    def value(one: Trained) -> float:
        return sign * one.scores["validation"][measure]

    def mean(one: Trained) -> float:
        return fmean(map(value, of_trial(trained, one.training.candidate.number)))

    return max(trained, key=lambda one: (mean(one), value(one)))


def in_words(scores: Mapping[str, float]) -> str:
    """The measures of one split in one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
