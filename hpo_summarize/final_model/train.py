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
from hpo_summarize.final_model.select import Candidate
from hpo_summarize.launch.processes import on_main
from hpo_summarize.launch.signals import is_lost_process
from hpo_summarize.training.arguments import follows_metric, within_device
from hpo_summarize.training.checkpoints import last_checkpoint
from hpo_summarize.training.devices import halved, remember_in, remembered_in
from hpo_summarize.training.evaluation import draw_as_loader
from hpo_summarize.training.trial import OUT_OF_MEMORY, failure_reason

# ROUGE F1 by split (`validation`, `test`) and measure, 0 to 1.
Scores = dict[str, dict[str, float]]


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
    runs = [one.scores for one in trained]
    return {
        split: {name: _mean_and_deviation([run[split][name] for run in runs]) for name in measures}
        for split, measures in runs[0].items()
    }


def _mean_and_deviation(values: list[float]) -> dict[str, float]:
    return {"mean": fmean(values), "deviation": stdev(values)}


def in_words(scores: Mapping[str, float]) -> str:
    """The measures of one split in one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())


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
    """Leaves out the evaluations of a training, whose dropout stays what it is with them."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draws the random number of the evaluation in its place."""
        if control.should_evaluate:
            control.should_evaluate = False
            draw_as_loader()

    on_epoch_end = on_step_end


class TrainingProgress(TrainerCallback):
    """Says the loss of each epoch.

    Args:
        say: Function that gets a line an epoch.
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


@dataclasses.dataclass(frozen=True)
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
        args = experiment.arguments_for(self.candidate.params, folder)
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

        Out of memory, it goes on with half the examples at once and twice the accumulation. What
        fits is noted beside `folder`, for all trainings there. Several processes end first, since
        the others cannot be called back from where they wait; the same call goes on then.

        The trial's evaluations are left out, unless its schedule follows them.

        Raises:
            HpoError: It ended in an error, or its weights are no numbers any more.
        """
        args = self.arguments(experiment, folder)
        world_size = args.world_size
        while True:
            sizes = on_main(lambda: remembered_in(folder.parent / FITTING))
            fitting = args if sizes is None else within_device(args, *sizes)
            trainer = experiment.build_trainer_for(
                self.candidate.params, fitting, train, validation
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
                checkpoint = on_main(lambda: last_checkpoint(folder, world_size))
                with stopping_at_storage_failure(folder):
                    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
                break
            except Exception as error:
                if is_lost_process(error):
                    raise
                self._note_smaller(fitting, failure_reason(error), folder.parent / FITTING)
            del trainer
        # Without mixed precision, as the model that is loaded from its folder.
        model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        on_main(lambda: self._check(model))
        return model

    def _note_smaller(self, args: Seq2SeqTrainingArguments, reason: str, path: Path) -> None:
        """Writes down the sizes to go on with after a failure.

        Raises:
            HpoError: There are none, or the other processes wait for this one.
        """
        state = PartialState()
        alone = state.num_processes == 1
        where = "" if alone else f" on process {state.process_index}"
        sizes = args.per_device_train_batch_size, args.per_device_eval_batch_size
        smaller = halved(sizes) if sizes[0] > 1 else None
        if reason != OUT_OF_MEMORY or smaller is None:
            memory = reason == OUT_OF_MEMORY
            step = "set data.max_dialogue_tokens lower" if memory else "mend the cause"
            raise HpoError(
                f"{self.name}: the training failed{where} ({reason}); {step} and run it again"
            )
        remember_in(path, smaller)
        if not alone:
            raise HpoError(
                f"{self.name}: {reason}{where}. The launch ends here; the same command goes on "
                f"with {smaller[0]} examples at once on each device and more accumulation"
            )

    def _check(self, model: torch.nn.Module) -> None:
        if not all(torch.isfinite(weights).all() for weights in model.parameters()):
            raise HpoError(
                f"{self.name}: the training went astray, and its weights are no finite numbers; "
                "leave this seed out of train.seeds, or take another trial with --trial"
            )
