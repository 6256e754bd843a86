"""The training of one trial, on one process or on several alike."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.trial import FrozenTrial
from transformers.trainer_utils import IntervalStrategy

from hpo_summarize.config.parameters import split_by_owner
from hpo_summarize.errors import HpoError, RunStopped, stopping_at_storage_failure
from hpo_summarize.io import claim, folder_below, mark_of
from hpo_summarize.launch.processes import on_all
from hpo_summarize.study.trials import values_of
from hpo_summarize.study.user_attrs import FOLDER
from hpo_summarize.training.arguments import with_values, within_device
from hpo_summarize.training.callbacks import OptunaPruningCallback
from hpo_summarize.training.checkpoints import last_checkpoint
from hpo_summarize.training.devices import Sizes, halved, remember
from hpo_summarize.training.epoch_eval import MeasuringTrainer
from hpo_summarize.training.group_failure import Group
from hpo_summarize.training.trial import (
    OUT_OF_MEMORY,
    TrialBeaten,
    TrialEnd,
    TrialFailed,
    TrialPlan,
    TrialRun,
    failure_reason,
    is_out_of_memory,
)


class TrialTrainer(MeasuringTrainer):
    """Trains a trial from its plan, with arguments of its own; only its model is left afterwards.

    Attributes:
        largest_per_device: Examples that a device takes at once in training; a larger batch of a
            trial is accumulated. None: as many as the trainer's own arguments put on one.
    """

    largest_per_device: int | None = None
    prune_after: float = 0.0  # See `OptunaPruningCallback`.
    # Generation fields of every trial; those that `hp_space` returns come before them.
    trial_decoding: Mapping[str, Any] = {}
    hp_name: Callable[[Any], str] | None
    _catch: tuple[type[Exception], ...] = (Exception,)
    _group: Group | None = None  # Where several processes train together.

    def _train_trial(self, trial: optuna.trial.BaseTrial, plan: TrialPlan) -> TrialEnd:
        """Trains one trial, on every process of the group alike.

        Out of memory, it is begun again with half the examples at once and twice the accumulation,
        which leaves the optimizer steps what they were.
        """
        while True:
            end = self._try_trial(trial, plan)
            smaller = halved(self._sizes(plan)) if end.message == OUT_OF_MEMORY else None
            if smaller is None:
                return end
            if isinstance(trial, optuna.Trial):
                remember(trial.study, smaller)
            # From the start: the checkpoint of an earlier run may have been rotated away.
            claim(Path(plan.folder), trial.user_attrs[FOLDER])
            plan = dataclasses.replace(plan, fitting=smaller, checkpoint=None, epochs=())

    def _sizes(self, plan: TrialPlan) -> Sizes:
        args = self._arguments_for(plan)
        return args.per_device_train_batch_size, args.per_device_eval_batch_size

    def _arguments_for(self, plan: TrialPlan) -> Any:
        """The training arguments of a trial, within the batch sizes that fit on the device."""
        training = split_by_owner(plan.values)["training"]
        args = with_values(self.args, training, self.args.world_size, self.largest_per_device)
        return args if plan.fitting is None else within_device(args, *plan.fitting)

    def _try_trial(self, trial: optuna.trial.BaseTrial, plan: TrialPlan) -> TrialEnd:
        try:
            with (
                stopping_at_storage_failure(plan.folder),
                self._set_up_for(trial, plan) as run,
            ):
                try:
                    self.train(resume_from_checkpoint=plan.checkpoint, trial=trial)
                except optuna.TrialPruned:
                    # By a callback of the evaluation, before its epoch could be recorded.
                    self._record_summaries(trial)
                    raise
                if not run.epochs:
                    self._report_to_hp_search(trial, self.state.global_step, self.evaluate())
                return TrialEnd(best=self._measure(run))
        except optuna.TrialPruned as pruned:
            return TrialEnd(message=str(pruned), beaten=isinstance(pruned, TrialBeaten))
        except Exception as error:
            if _is_gone(trial, plan.folder):
                # What has failed may have needed its checkpoints, and not other values.
                error = RunStopped(
                    f"{plan.folder} was removed or replaced while its trial ran; put it back, or "
                    "leave it, and start the same command again, which repeats the trial"
                )
            if isinstance(error, RunStopped):
                self._drop_unfinished_checkpoint(plan.folder)
            if self._group is not None and not _is_everywhere(error):
                smaller = halved(self._sizes(plan)) if is_out_of_memory(error) else None
                self._group.leave(plan.number, error, smaller)
            if not isinstance(error, self._catch):
                raise
            return TrialEnd(message=failure_reason(error), failed=True)

    def _drop_unfinished_checkpoint(self, folder: str) -> None:
        """On a full disk it takes the room in which the study is to put the trial back."""
        if self.args.should_save:
            with suppress(OSError):
                last_checkpoint(Path(folder), self.args.world_size)

    @contextmanager
    def _set_up_for(self, trial: optuna.trial.BaseTrial, plan: TrialPlan) -> Iterator[TrialRun]:
        """Gives the trainer the arguments of one trial, and its own back afterwards."""
        values = split_by_owner(plan.values)["generation"]
        decoding = {**self.trial_decoding, **values}
        own_args, own_callbacks = self.args, list(self.callback_handler.callbacks)
        args = self._arguments_for(plan)
        # The two decoding settings that are training arguments, too, would win over the trial's.
        if "num_beams" in decoding:
            args.generation_num_beams = None
        if decoding.keys() & {"max_length", "max_new_tokens"}:
            args.generation_max_length = None
        self._run, self._decoding = TrialRun(trial, plan, list(plan.epochs)), decoding
        self.summaries = None  # Those of the trial before.
        # Losses with more smoothing are larger for the same model, and trials are compared by them.
        self._smooths_eval_loss = "label_smoothing_factor" not in plan.values
        self._use_arguments(args)
        reports = any(isinstance(callback, OptunaPruningCallback) for callback in own_callbacks)
        evaluates = args.eval_strategy != IntervalStrategy.NO
        if plan.n_objectives == 1 and evaluates and not reports:
            self.add_callback(OptunaPruningCallback(trial, self._objective, self.prune_after))
        try:
            yield self._run
        finally:
            self._run, self._decoding, self._smooths_eval_loss = None, {}, True
            self.is_in_train = False
            self.callback_handler.callbacks = own_callbacks
            self._use_arguments(own_args)
            self._release(self.model)

    def _end_search(self) -> None:
        """Makes the trainer ready to evaluate, predict and train."""
        # The making of a trial's arguments takes the state of the accelerator away.
        self.create_accelerator_and_postprocess()
        if self.model is None:  # The last trial ended before it had one.
            self.model = self.model_wrapped = self.call_model_init()

    def call_model_init(self, trial: optuna.trial.BaseTrial | None = None) -> Any:
        """Goes on only where the model of a trial could be built on every process."""
        build = super().call_model_init
        return build(trial) if self._run is None else on_all(lambda: build(trial))

    def _hp_search_setup(self, trial: optuna.trial.BaseTrial | None) -> None:
        """The arguments of the trial are in place already; the parent would cast each value."""
        if self._run is None:
            return super()._hp_search_setup(trial)
        self._trial = trial
        self.create_accelerator_and_postprocess()

    def _get_output_dir(self, trial: optuna.trial.BaseTrial | FrozenTrial | None) -> str:
        """The folder of a trial, also when no search is running.

        Raises:
            HpoError: `hp_name` gave one that is not inside of `output_dir`.
        """
        if trial is None:
            return super()._get_output_dir(trial)
        if self._run is not None:
            return self._run.plan.folder
        if isinstance(trial, FrozenTrial):
            trial = copy.copy(trial)
            trial.params = values_of(trial)  # Which it has for `hp_name` while it runs, too.
        name = self.hp_name(trial) if self.hp_name is not None else f"run-{trial.number}"
        return str(folder_below(Path(self.args.output_dir), name))

    def _report_to_hp_search(
        self, trial: optuna.trial.BaseTrial, step: int, metrics: dict[str, float]
    ) -> None:
        """Keeps the objective of an epoch; the callback alone reports to Optuna."""
        if self._run is None:
            return super()._report_to_hp_search(trial, step, metrics)
        self.objective = self._objective(metrics)
        self._run.record(self.state.epoch, self.objective)
        if self._run.latest_is_best():
            self._record_summaries(trial)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Ends a trial at the first loss that is not a number; nothing after it would be one."""
        loss = super().training_step(*args, **kwargs)
        if self._run is not None and not self._is_finite_everywhere(loss):
            raise TrialFailed("the training loss is not a finite number")
        return loss

    def _is_finite_everywhere(self, loss: torch.Tensor) -> bool:
        finite = torch.isfinite(loss).all()
        if self.args.world_size > 1:
            finite = self.accelerator.gather(finite).all()
        return bool(finite)


def _is_gone(trial: optuna.trial.BaseTrial, folder: str) -> bool:
    """Whether the folder of a trial of this process has lost its mark."""
    return isinstance(trial, optuna.Trial) and mark_of(Path(folder)) != trial.user_attrs[FOLDER]


def _is_everywhere(error: Exception) -> bool:
    """Whether every process of the group has met this error at the same point."""
    return isinstance(error, TrialFailed) or (isinstance(error, HpoError) and error.shared)
