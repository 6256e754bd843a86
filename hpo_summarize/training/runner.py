"""`TrialRunner`: the trials of a search, each planned, trained by a fresh trainer, and ended."""

from __future__ import annotations

import dataclasses
import gc
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from transformers import Seq2SeqTrainer, set_seed
from transformers.trainer_utils import IntervalStrategy, default_compute_objective

from hpo_summarize.config.parameters import owner_of
from hpo_summarize.errors import HpoError, RunStopped, stopping_at_storage_failure
from hpo_summarize.io import claim, mark_of
from hpo_summarize.launch.processes import broadcast
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.study.run import StudyCallback, TrialError, run_study
from hpo_summarize.study.user_attrs import BEST_EPOCH, EPOCH_VALUE, FAILURE, FOLDER, VALUES
from hpo_summarize.training.arguments import with_values, within_device
from hpo_summarize.training.callbacks import OptunaPruningCallback
from hpo_summarize.training.checkpoints import TrialFolders, last_checkpoint, slim
from hpo_summarize.training.ddp import DecidedTrial, FollowedTrial, follow, leading
from hpo_summarize.training.devices import Sizes, halved, remember
from hpo_summarize.training.epoch_eval import full_score
from hpo_summarize.training.group_failure import Group
from hpo_summarize.training.planning import (
    HpSpace,
    check_names,
    check_space,
    default_space,
    plan_trial,
)
from hpo_summarize.training.trial import (
    Objective,
    TrialEnd,
    TrialFailed,
    TrialPlan,
    TrialRun,
    failure_reason,
    is_out_of_memory,
)
from hpo_summarize.training.upstream_fixes import hold, release

if TYPE_CHECKING:
    from hpo_summarize.training.trainer import SummarizationTrainer

# Beside these values every setting of a checkpoint's decoding can act.
_NOTHING_IDLE = {"num_beams": 2, "do_sample": True}


class TrialRunner:
    """Runs trials, each with a trainer of its own that is made from the user's.

    Args:
        template: The user's trainer. It has the model of the trial that runs, or ran last.
        hp_space: From a trial to values by name. Default: learning rate, epochs, batch size.
        compute_objective: From the metrics of an evaluation to the objective, or several.
        hp_name: From a trial to the name of its folder below `args.output_dir`.
        catch: Exceptions that end a trial and not the search. Default: all.

    Raises:
        HpoError: The trainer has no `model_init`, the space has a name that cannot act, or two
            trials get one folder.
    """

    _catch: tuple[type[Exception], ...]

    def __init__(
        self,
        template: SummarizationTrainer,
        hp_space: HpSpace | None = None,
        compute_objective: Objective | None = None,
        hp_name: Callable[[optuna.trial.BaseTrial], str] | None = None,
        catch: tuple[type[Exception], ...] | None = None,
    ) -> None:
        if template.model_init is None:
            raise HpoError(
                "a search builds a model for every trial, and this trainer was given one model; "
                "pass model_init=... in place of model=..."
            )
        self._template = template
        self._hp_space = hp_space or default_space
        self._compute_objective: Any = compute_objective or default_compute_objective
        self._catch = (TrialFailed, *((Exception,) if catch is None else catch))
        self._group: Group | None = None  # Where several processes train together.
        self.folders = TrialFolders(Path(template.args.output_dir), hp_name)
        check_space(self._spec_of, self.folders)

    def search(
        self,
        study: optuna.Study,
        n_trials: int,
        timeout: float | None = None,
        callbacks: Sequence[StudyCallback] = (),
        keep_trials: int = 1,
    ) -> None:
        """Runs trials until the study has `n_trials`; the arguments are those of the trainer's."""

        def keep_best(study: optuna.Study, trial: FrozenTrial) -> None:
            self.folders.keep_best(keep_trials, study)

        with _collecting_only_new_objects(), self._leading(study):
            self.folders.check(study, n_trials)
            callbacks = [*callbacks, keep_best]
            run_study(study, self.run, n_trials, timeout, callbacks, self.folders.root)

    def run(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Trains one trial and returns its value; on the main process.

        Raises:
            optuna.TrialPruned: The pruner stopped the trial, or it failed.
        """
        decided = DecidedTrial(trial, self._spec_of(trial))
        world_size = self._template.args.world_size
        plan = plan_trial(decided, self.folders, self._compute_objective, world_size)
        derived = decided.params != decided.sampled
        if derived:
            _record_values(decided)
        broadcast(plan)
        end = self._train(decided, plan)
        if derived and decided.sampled != plan.sampled:  # `model_init` has sampled, too.
            _record_values(decided)
        return self._value(decided, plan, end)

    def _spec_of(self, trial: optuna.Trial) -> TrialSpec:
        values = self._hp_space(trial)
        check_names(values, self._template.model_init)
        # No storage takes the numbers of NumPy.
        plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in values.items()}
        return TrialSpec.of(plain)

    def _value(
        self, trial: optuna.Trial, plan: TrialPlan, end: TrialEnd
    ) -> float | tuple[float, ...]:
        if end.best is not None:
            trial.set_user_attr(BEST_EPOCH, end.best.epoch)
            if end.best.epoch_value is not None:
                trial.set_user_attr(EPOCH_VALUE, end.best.epoch_value)
            slim(Path(plan.folder), self._template.state.best_model_checkpoint)
            return end.best.value
        if end.failed:
            trial.set_user_attr(FAILURE, end.message)
        if plan.n_objectives > 1:
            raise TrialError(end.message)
        raise optuna.TrialPruned(end.message)

    # Several processes that train together.

    def _leading(self, study: optuna.Study) -> AbstractContextManager[None]:
        """Ends the loops of the processes that `follow` at the end of a search."""
        if self._template.args.world_size == 1:
            return nullcontext()
        self._group = broadcast(Group(study))
        return leading()

    def follow(self) -> None:
        """Trains the trials that the main process runs, until it has no more."""
        self._group = broadcast()  # None where the main process has failed before.
        if self._group is not None:
            follow(self._train_followed)

    def _train_followed(self, plan: TrialPlan) -> None:
        self._train(FollowedTrial(plan.spec, plan.number, plan.sampled), plan)

    # The training of a trial, on every process of the group alike.

    def _train(self, trial: optuna.trial.BaseTrial, plan: TrialPlan) -> TrialEnd:
        """Trains one trial.

        Out of memory, it starts again with half the examples at once and twice the accumulation,
        which leaves the optimizer steps what they were.
        """
        while True:
            end = self._attempt(trial, plan)
            if end.smaller is None:
                return end
            if isinstance(trial, optuna.Trial):  # In a group the launch has ended.
                remember(trial.study, end.smaller)
                # From the start: the checkpoint of an earlier run may have been rotated away.
                claim(Path(plan.folder), trial.user_attrs[FOLDER])
            plan = dataclasses.replace(plan, fitting=end.smaller, checkpoint=None, epochs=())

    def _attempt(self, trial: optuna.trial.BaseTrial, plan: TrialPlan) -> TrialEnd:
        sizes: Sizes | None = None
        try:
            with stopping_at_storage_failure(plan.folder):
                args = self._arguments(plan)
                sizes = args.per_device_train_batch_size, args.per_device_eval_batch_size
                return self._train_once(trial, plan, args)
        except optuna.TrialPruned as pruned:
            return TrialEnd(message=str(pruned))
        except Exception as error:
            smaller = halved(sizes) if sizes and is_out_of_memory(error) else None
            return self._failed(trial, plan, error, smaller)

    def _failed(
        self,
        trial: optuna.trial.BaseTrial,
        plan: TrialPlan,
        error: Exception,
        smaller: Sizes | None,
    ) -> TrialEnd:
        if _is_gone(trial, plan.folder):
            # What has failed may have needed its checkpoints, and not other values.
            error = RunStopped(
                f"{plan.folder} was removed or replaced while its trial ran; put it back, or "
                "leave it, and start the same command again, which repeats the trial"
            )
        args = self._template.args
        if isinstance(error, RunStopped) and args.should_save:
            # On a full disk it takes the room in which the study is to requeue the trial.
            with suppress(OSError):
                last_checkpoint(Path(plan.folder), args.world_size)
        if self._group is not None and not _is_everywhere(error):
            self._group.leave(plan.number, error, smaller)
        if not isinstance(error, self._catch):
            raise error
        return TrialEnd(message=failure_reason(error), failed=True, smaller=smaller)

    def _arguments(self, plan: TrialPlan) -> Any:
        """The training arguments of a trial, within the batch sizes that fit on the device."""
        own, largest = self._template.args, self._template.largest_per_device
        args = with_values(own, plan.spec.training, own.world_size, largest)
        return args if plan.fitting is None else within_device(args, *plan.fitting)

    def _train_once(self, trial: optuna.trial.BaseTrial, plan: TrialPlan, args: Any) -> TrialEnd:
        run = TrialRun(trial, plan, self._compute_objective, list(plan.epochs))
        with self._trainer_of(run, args) as trainer:
            try:
                trainer.train(resume_from_checkpoint=plan.checkpoint, trial=trial)
            except optuna.TrialPruned:
                # By a callback of the evaluation, before its epoch could be recorded.
                run.record_summaries(trainer.summaries)
                raise
            if not run.epochs:
                run.record(trainer.state.epoch, trainer.evaluate(), trainer.summaries)
            return TrialEnd(best=full_score(trainer, run))

    @contextmanager
    def _trainer_of(self, run: TrialRun, args: Any) -> Iterator[SummarizationTrainer]:
        """A fresh trainer with the model of a trial; the template has the model from then on."""
        template = self._template
        release(template)
        trainer = template.for_trial(run, args)
        trainer.hp_name = self.folders.hp_name
        reports = any(
            isinstance(one, OptunaPruningCallback) for one in trainer.callback_handler.callbacks
        )
        evaluates = args.eval_strategy != IntervalStrategy.NO
        if run.plan.n_objectives == 1 and evaluates and not reports:
            callback = OptunaPruningCallback(run.trial, run.objective, template.prune_after)
            trainer.add_callback(callback)
        hold(template, trainer.model)
        try:
            yield trainer
        finally:
            template.state = trainer.state


@contextmanager
def _collecting_only_new_objects() -> Iterator[None]:
    """Keeps what is alive now out of the garbage collections between the trials.

    The libraries alone hold over a million objects, and to look through them took 0.27 s each time,
    several times a trial.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def load_trial(trainer: SummarizationTrainer, params: Mapping[str, Any], checkpoint: Path) -> None:
    """Gives a trainer the model of a trial that has kept its weights.

    Its generation config has all that the checkpoint of the recipe says, also what cannot act
    in it: the decoding is still to be chosen.

    Args:
        trainer: The trainer.
        params: Hyperparameters of the trial by name.
        checkpoint: Folder with the weights.
    """
    release(trainer)
    set_seed(trainer.args.seed)  # Some weights that are not kept are drawn.
    owned = {name: value for name, value in params.items() if owner_of(name)}
    trial = FollowedTrial(TrialSpec.of({**owned, **_NOTHING_IDLE}), sampled=params)
    hold(trainer, Seq2SeqTrainer.call_model_init(trainer, trial))
    trainer._load_from_checkpoint(str(checkpoint))


def _record_values(trial: DecidedTrial) -> None:
    trial.set_user_attr(VALUES, json.loads(json.dumps(trial.params, default=str)))


def _is_gone(trial: optuna.trial.BaseTrial, folder: str) -> bool:
    """Whether the folder of a trial of this process has lost its mark."""
    return isinstance(trial, optuna.Trial) and mark_of(Path(folder)) != trial.user_attrs[FOLDER]


def _is_everywhere(error: Exception) -> bool:
    """Whether every process of the group has met this error at the same point."""
    return isinstance(error, TrialFailed) or (isinstance(error, HpoError) and error.shared)
