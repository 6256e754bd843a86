"""One training with the values of a trial, up to the trial's best epoch."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
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

from hpo_summarize.arguments import within_device
from hpo_summarize.best import Candidate
from hpo_summarize.data import Dialogues
from hpo_summarize.distributed import on_main
from hpo_summarize.errors import HpoError
from hpo_summarize.experiment import Experiment
from hpo_summarize.trainer.checkpoints import last_checkpoint
from hpo_summarize.trainer.trial_run import OUT_OF_MEMORY, failure_reason

# An epoch is a sum of fractions, and ends within this of a whole number.
_ROUNDING = 1e-6
_TIMES = ("_runtime", "_per_second")  # Ends of names in a log.


class StopAfter(TrainerCallback):
    """Ends a training after a number of epochs, and leaves its schedule as it is.

    The learning rate of each step is that of a training of all epochs, which is what the trial had
    when it reached its best one. With the number of epochs itself lowered, the rate would fall to
    its end in fewer steps, and the model would be another one.

    Args:
        epochs: May have a fraction, where a trial was measured within its epochs.
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


class TrainingProgress(TrainerCallback):
    """Says what each epoch has come to.

    Args:
        say: Gets a line an epoch.
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
        """Takes the losses and the metrics from the log, and leaves out the times."""
        shown = {
            name.removeprefix("eval_"): value
            for name, value in (logs or {}).items()
            if name == "loss" or (name.startswith("eval_") and not name.endswith(_TIMES))
        }
        if shown and "loss" in (logs or {}) or "eval_loss" in (logs or {}):
            text = "  ".join(f"{name} {value:.4f}" for name, value in shown.items())
            kind = "validation" if "eval_loss" in (logs or {}) else "training"
            self._say(f"  epoch {state.epoch or 0:g}/{state.num_train_epochs:g}  {kind} {text}")


@dataclasses.dataclass(frozen=True)
class Training:
    """One training.

    Attributes:
        candidate: The trial that gives the values, the schedule and the number of epochs.
        seed: Of the first weights, of the order of the rows, and of dropout.
    """

    candidate: Candidate
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"trial-{self.candidate.number}-seed-{self.seed}"

    def arguments(self, experiment: Experiment, folder: Path) -> Seq2SeqTrainingArguments:
        """Its training arguments: those of the trial, with a checkpoint after every epoch.

        The evaluations stay, too: each draws random numbers, and without them a training with the
        trial's own seed would not be the trial's.
        """
        args = experiment.arguments_for(self.candidate.params, folder)
        fields: dict[str, Any] = {"eval_strategy": "no"} if _uses_validation(experiment) else {}
        fields |= {"save_strategy": "epoch", "save_total_limit": 1, "save_only_model": False}
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

        Out of memory, it begins again with half the examples at once and twice the accumulation.

        Raises:
            HpoError: It ended in an error, or its weights are no numbers any more.
        """
        args = self.arguments(experiment, folder)
        world_size = args.world_size
        while True:
            trainer = experiment.build_trainer_for(self.candidate.params, args, train, validation)
            for callback in (StopAfter(self.candidate.epoch), *callbacks):
                trainer.add_callback(callback)
            try:
                checkpoint = on_main(lambda: last_checkpoint(folder, world_size))
                trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
                break
            except Exception as error:
                args = self._smaller(args, failure_reason(error))
            del trainer
            on_main(lambda: _clear(folder))
        model = trainer.accelerator.unwrap_model(trainer.model)
        if not all(torch.isfinite(weights).all() for weights in model.parameters()):
            raise HpoError(
                f"{self.name}: the training went astray, and its weights are no finite numbers; "
                "leave this seed out of train.seeds, or take another trial with --trial"
            )
        return model

    def _smaller(self, args: Seq2SeqTrainingArguments, reason: str) -> Seq2SeqTrainingArguments:
        per_device = args.per_device_train_batch_size
        alone = PartialState().num_processes == 1  # The others know nothing of this one's error.
        if reason == OUT_OF_MEMORY and per_device > 1 and alone:
            half = max(args.per_device_eval_batch_size // 2, 1)
            return within_device(args, per_device // 2, half)
        hint = (
            "set training.per_device_train_batch_size to fewer examples"
            if (reason == OUT_OF_MEMORY)
            else "mend the cause"
        )
        raise HpoError(f"{self.name}: the training failed ({reason}); {hint} and run it again")


def _uses_validation(experiment: Experiment) -> bool:
    return experiment.recipe.train.use_validation


def _clear(folder: Path) -> None:
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
