"""`SummarizationTrainer`: `Seq2SeqTrainer` with a hyperparameter search that does what it says."""

from __future__ import annotations

import gc
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from transformers import set_seed
from transformers.hyperparameter_search import default_hp_search_backend
from transformers.trainer_utils import (
    BestRun,
    HPSearchBackend,
    default_compute_objective,
    number_of_arguments,
)

from hpo_summarize.config.parameters import owner_of, why_cannot_act
from hpo_summarize.errors import HpoError, RunStopped
from hpo_summarize.io import claim, discard, first_taken, is_taken, mark_of, taken_message
from hpo_summarize.launch.processes import broadcast
from hpo_summarize.study.run import TrialError, run_study
from hpo_summarize.study.trials import best_trials, counts, require_complete, values_of
from hpo_summarize.study.user_attrs import (
    BEATEN,
    BEST_EPOCH,
    CONTINUES,
    EPOCH_VALUE,
    FAILURE,
    FOLDER,
    SUMMARIES,
    VALUES,
)
from hpo_summarize.training.checkpoints import evaluations, slim, take_over
from hpo_summarize.training.ddp import DecidedTrial, FollowedTrial, GroupTrainer
from hpo_summarize.training.devices import remembered
from hpo_summarize.training.trial import Epoch, TrialFailed, TrialPlan, frozen

HpSpace = Callable[[optuna.trial.BaseTrial], Mapping[str, Any]]
# Beside these values every setting of a checkpoint's decoding can act.
_NOTHING_IDLE = {"num_beams": 2, "do_sample": True}


class SummarizationTrainer(GroupTrainer):
    """`Seq2SeqTrainer` with a sound `hyperparameter_search`, and a sound loss for BART and T5.

    Takes the arguments of `Seq2SeqTrainer`. What differs outside of a search stands in
    `CorrectedSeq2SeqTrainer`.
    """

    def hyperparameter_search(
        self,
        hp_space: HpSpace | None = None,
        compute_objective: Callable[[dict[str, float]], float | Sequence[float]] | None = None,
        n_trials: int = 20,
        direction: str | list[str] = "minimize",
        backend: str | HPSearchBackend | None = None,
        hp_name: Callable[[optuna.trial.BaseTrial], str] | None = None,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """Searches with Optuna; for another backend this is the parent's method.

        Every trial gets fresh arguments and a fresh model: `hp_space` is called first, and what it
        returns are the values of the trial. `model_init` reads them in `trial.params`, or gets them
        from `trial.suggest_*`, beside what was sampled and not returned. They are recorded as the
        user attribute `values` where they differ from the sampled ones. The objective is reported
        once an epoch, at step = epoch, and the value of a trial is that of its best epoch.

        Afterwards the trainer has its own arguments again, and the model of the last trial, as the
        parent leaves it; the weights of the best trial are in its folder. `eval_loss` is without
        label smoothing in trials whose values set `label_smoothing_factor`.

        Args:
            hp_space: From a trial to values by name: fields of `Seq2SeqTrainingArguments`, of
                `GenerationConfig`, and the names of `hpo_summarize.config.parameters`. Those of the
                model (`lora_r`, `hidden_dropout`, ...) are for `model_init`, which reads
                `trial.params`.
            compute_objective: From the metrics of an evaluation to the objective, or to a sequence
                of them. Default: the loss if there is no other metric, else the sum of all.
            n_trials: Finished trials wanted in the study, those of earlier runs included.
            direction: `"minimize"` or `"maximize"`, or a list of them for several objectives.
            backend: `"optuna"`, `"ray"` or `"wandb"`.
            hp_name: From a trial to the name of its folder below `args.output_dir`, another one for
                each trial.
            **kwargs: With Optuna: the arguments of `optuna.create_study`, or `study` itself;
                `timeout` (seconds) and `callbacks` as in `Study.optimize`; `catch`, the exceptions
                that end a trial and not the search (default all); `keep_trials`, how many of the
                best trials keep their checkpoints (default 1).

        Returns:
            The best trial, or the trials of the Pareto front.

        Raises:
            HpoError: A value has a name that cannot act, or `n_jobs` is not 1.
            SearchFailed: No trial came to an end, or three in a row failed for one reason.
        """
        backend = HPSearchBackend(backend or default_hp_search_backend())
        if backend is not HPSearchBackend.OPTUNA:
            return super().hyperparameter_search(
                hp_space, compute_objective, n_trials, direction, backend, hp_name, **kwargs
            )
        if self.model_init is None:
            raise HpoError(
                "a search builds a model for every trial, and this trainer was given one model; "
                "pass model_init=... in place of model=..."
            )
        if kwargs.pop("n_jobs", 1) != 1:
            raise HpoError(
                "n_jobs must be 1: threads would share one trainer. For parallel trials start "
                "several processes on one storage"
            )
        self.set_up_search(hp_space, compute_objective, hp_name, kwargs.pop("catch", None))
        kwargs.pop("gc_after_trial", None)  # Every trial is cleared away in any case.
        keep = kwargs.pop("keep_trials", 1)
        options = {key: kwargs.pop(key) for key in ("timeout",) if key in kwargs}
        callbacks = [*kwargs.pop("callbacks", ()), partial(self._keep_best_folders, keep)]
        study = kwargs.pop("study", None)
        if study is None:
            study = _create_study(direction, **kwargs)
        elif kwargs:
            raise HpoError(
                f"{', '.join(kwargs)} cannot be set for a study that exists already; "
                "leave them out, or leave study out"
            )
        with _collecting_only_new_objects(), self._leading_the_group(study):
            self._refuse_taken_folders(study, n_trials)
            folder = Path(self.args.output_dir)
            run_study(
                study, self.run_trial, n_trials, callbacks=callbacks, folder=folder, **options
            )
        self._end_search()
        require_complete(study, options.get("timeout"))
        runs = [BestRun(str(t.number), _value(t), values_of(t)) for t in best_trials(study)]
        return runs if len(study.directions) > 1 else runs[0]

    def set_up_search(
        self,
        hp_space: HpSpace | None = None,
        compute_objective: Callable[[dict[str, float]], float | Sequence[float]] | None = None,
        hp_name: Callable[[optuna.trial.BaseTrial], str] | None = None,
        catch: tuple[type[Exception], ...] | None = None,
    ) -> None:
        """Makes `run_trial` ready; `hyperparameter_search` does this itself.

        Raises:
            HpoError: The space has a name that cannot act.
        """
        self.hp_space = hp_space or _default_space
        self.hp_name = hp_name
        self.compute_objective: Any = compute_objective or default_compute_objective
        caught = (Exception,) if catch is None else catch
        self._catch: tuple[type[Exception], ...] = (TrialFailed, *caught)
        self._probe_space()

    def run_trial(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Trains one trial and returns the objective of its best epoch.

        An objective for `study.optimize`; `hyperparameter_search` calls it for every trial.

        Raises:
            optuna.TrialPruned: The pruner stopped the trial, or it failed: then the trial's user
                attribute `failure` holds the reason. As a pruned trial a failed one is known to
                the sampler, which would come back to the same values otherwise.
        """
        plan = self._plan(trial)  # An error here is the main process's own.
        decides = plan.params != trial.params
        trial = DecidedTrial(trial, plan.params)
        if decides:
            _record_values(trial)
        broadcast(plan)
        end = self._train_trial(trial, plan)
        if decides and trial.params != plan.params:  # `model_init` has sampled, too.
            _record_values(trial)
        if end.best is not None:
            trial.set_user_attr(BEST_EPOCH, end.best.epoch)
            if end.best.epoch_value is not None:
                trial.set_user_attr(EPOCH_VALUE, end.best.epoch_value)
            slim(Path(self._get_output_dir(trial)), self.state.best_model_checkpoint)
            return end.best.value
        if end.failed:
            trial.set_user_attr(FAILURE, end.message)
        if end.beaten:
            trial.set_user_attr(BEATEN, end.message)
        if plan.n_objectives > 1:
            raise TrialError(end.message)
        raise optuna.TrialPruned(end.message)

    def load_trial(self, params: Mapping[str, Any], checkpoint: Path) -> None:
        """Gives the trainer the model of a trial that has kept its weights.

        Its generation config has all that the checkpoint of the recipe says, also what cannot act
        in it: the decoding is still to be chosen.

        Args:
            params: Its hyperparameters by name.
            checkpoint: Folder with the weights.
        """
        set_seed(self.args.seed)  # Some weights that are not kept are drawn.
        self._decoding = None
        try:
            trial = FollowedTrial({**params, **_NOTHING_IDLE})
            self.model = self.model_wrapped = self.call_model_init(trial)
        finally:
            self._decoding = {}
        self._load_from_checkpoint(str(checkpoint))

    def _plan(self, trial: optuna.Trial) -> TrialPlan:
        """Samples everything, and takes over what an interrupted trial has left."""
        values = {name: _plain(value) for name, value in self.hp_space(trial).items()}
        self._refuse_idle_names(values)
        trial = DecidedTrial(trial, {**trial.params, **values})
        checkpoint = self._begin_folder(trial)
        epochs = [
            Epoch(metrics["epoch"], frozen(self.compute_objective(dict(metrics))))
            for metrics in (evaluations(checkpoint) if checkpoint else ())
        ]
        if checkpoint and (summaries := _earlier_summaries(trial)):
            trial.set_user_attr(SUMMARIES, summaries)
        for done in epochs:  # Known to the pruner under the number of the interrupted trial only.
            if isinstance(done.value, float) and float(done.epoch).is_integer():
                trial.report(done.value, int(done.epoch))
        directions = trial.study.directions
        return TrialPlan(
            trial.number,
            trial.params,
            values,
            n_objectives=len(directions),
            maximize=directions[0] == optuna.study.StudyDirection.MAXIMIZE,
            folder=self._get_output_dir(trial),
            checkpoint=str(checkpoint) if checkpoint else None,
            epochs=tuple(epochs),
            fitting=remembered(trial.study),
        )

    def _begin_folder(self, trial: optuna.Trial) -> Path | None:
        """Makes the folder of a trial; returns the checkpoint that an interrupted one has left.

        Raises:
            RunStopped: It holds files that are not of this trial.
        """
        folder, left = Path(self._get_output_dir(trial)), self._folder_of_interrupted(trial)
        mark = (mark_of(left) if left else None) or uuid.uuid4().hex
        trial.set_user_attr(FOLDER, mark)
        if left is None:
            claim(folder, mark)
            return None
        if is_taken(folder) and folder != left:
            raise RunStopped(taken_message(folder))
        return take_over(left, folder, self.args.world_size)

    def _folder_of_interrupted(self, trial: optuna.Trial) -> Path | None:
        """What the trial that this one goes on with has left, or the one before that.

        A trial may be interrupted again before it could take over what there was.
        """
        trials = trial.study.get_trials(deepcopy=False)
        number = trial.user_attrs.get(CONTINUES)
        while number is not None:
            folder = Path(self._get_output_dir(trials[number]))
            if mark_of(folder) == trials[number].user_attrs.get(FOLDER, ""):
                return folder
            number = trials[number].user_attrs.get(CONTINUES)
        return None

    def _probe_space(self) -> None:
        """Refuses names that cannot act, and folders that cannot be, before the first trial."""
        probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        folders = set()
        for trial in (probe.ask(), probe.ask()):
            values = dict(self.hp_space(trial))
            self._refuse_idle_names(values)
            decided = DecidedTrial(trial, {**trial.params, **values})
            if (folder := self._get_output_dir(decided)) in folders:
                raise HpoError(
                    f"hp_name gave two trials one folder ({folder}), and the second one would "
                    "replace the weights of the first; put trial.number into the name"
                )
            folders.add(folder)

    def _refuse_taken_folders(self, study: optuna.Study, n_trials: int) -> None:
        """Refuses to begin where another search has kept the weights of its `run-N`.

        Raises:
            HpoError: A folder is in the way. With `hp_name` that is known when there is the trial.
        """
        if self.hp_name is not None:
            return
        folders = [Path(self._get_output_dir(FollowedTrial({}, n))) for n in range(n_trials)]
        if taken := first_taken(folders, lambda: len(study.get_trials(deepcopy=False))):
            raise HpoError(
                f"{taken_message(taken)}. To go on with an earlier search pass its storage=..., "
                "study_name=... and load_if_exists=True"
            )

    def _refuse_idle_names(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            reason = why_cannot_act(name)
            if owner_of(name) in ("model", "lora") and not number_of_arguments(self.model_init):
                reason = "model_init takes no trial and cannot apply it; give it the argument trial"
            if reason:
                raise HpoError(f"the search space has '{name}' (value {value!r}): {reason}")

    def _keep_best_folders(self, count: int, study: optuna.Study, trial: FrozenTrial) -> None:
        """Of the folders of all trials only those of the `count` best ones stay on disk."""
        # Listed first: a trial that another worker ends meanwhile may be the new best one.
        ended = [other for other in study.get_trials(deepcopy=False) if counts(other)]
        keep = {best.number for best in best_trials(study, count)}
        for other in ended:
            if other.number not in keep:
                discard(Path(self._get_output_dir(other)), other.user_attrs.get(FOLDER))


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


def _default_space(trial: optuna.trial.BaseTrial) -> dict[str, Any]:
    """The parent's default space without the seed."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
        "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 5),
        "batch_size": trial.suggest_categorical("batch_size", [4, 8, 16, 32, 64]),
    }


def _create_study(direction: str | list[str], **kwargs: Any) -> optuna.Study:
    directions: Any = [direction] if isinstance(direction, str) else direction
    return optuna.create_study(directions=directions, **kwargs)


def _record_values(trial: DecidedTrial) -> None:
    trial.set_user_attr(VALUES, json.loads(json.dumps(trial.params, default=str)))


def _plain(value: Any) -> Any:
    """A number of NumPy as one of Python: neither a storage nor the trainer's state takes it."""
    return value.item() if isinstance(value, np.generic) else value


def _earlier_summaries(trial: optuna.Trial) -> dict[str, Any] | None:
    """What the summaries of the best epoch were like when the trial was interrupted."""
    earlier = trial.study.get_trials(deepcopy=False)[trial.user_attrs[CONTINUES]]
    return earlier.user_attrs.get(SUMMARIES)


def _value(trial: FrozenTrial) -> float | list[float]:
    return trial.values if len(trial.values) > 1 else trial.values[0]
