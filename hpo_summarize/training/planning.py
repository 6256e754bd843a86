"""Before a trial runs: the study, its values, its folder, what an interrupted trial has left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from transformers.trainer_utils import number_of_arguments

from hpo_summarize.config.parameters import owner_of, why_cannot_act
from hpo_summarize.errors import HpoError
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.study.user_attrs import CONTINUES, SUMMARIES
from hpo_summarize.training.checkpoints import TrialFolders, evaluations
from hpo_summarize.training.ddp import DecidedTrial
from hpo_summarize.training.devices import remembered
from hpo_summarize.training.trial import Epoch, Objective, TrialPlan, as_value

HpSpace = Callable[[optuna.trial.BaseTrial], Mapping[str, Any]]


def default_space(trial: optuna.trial.BaseTrial) -> dict[str, Any]:
    """The parent's default space without the seed."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-6, 1e-4, log=True),
        "num_train_epochs": trial.suggest_int("num_train_epochs", 1, 5),
        "batch_size": trial.suggest_categorical("batch_size", [4, 8, 16, 32, 64]),
    }


def open_study(
    direction: str | list[str],
    study: optuna.Study | None = None,
    n_jobs: int = 1,
    gc_after_trial: bool = True,
    **kwargs: Any,
) -> optuna.Study:
    """The given study, or a new one; `kwargs` are those of `optuna.create_study`.

    Raises:
        HpoError: An argument cannot act. (`gc_after_trial` may be given, and always holds.)
    """
    if n_jobs != 1:
        raise HpoError(
            "n_jobs must be 1: threads would share one trainer. For parallel trials start "
            "several processes on one storage"
        )
    if study is None:
        directions: Any = [direction] if isinstance(direction, str) else direction
        return optuna.create_study(directions=directions, **kwargs)
    if kwargs:
        raise HpoError(
            f"{', '.join(kwargs)} cannot be set for a study that exists already; "
            "leave them out, or leave study out"
        )
    return study


def check_names(values: Mapping[str, Any], model_init: Callable[..., Any]) -> None:
    """Refuses what `hp_space` returned where a name cannot act.

    Raises:
        HpoError: Names it, with its value.
    """
    for name, value in values.items():
        reason = why_cannot_act(name)
        if owner_of(name) in ("model", "lora") and not number_of_arguments(model_init):
            reason = "model_init takes no trial and cannot apply it; give it the argument trial"
        if reason:
            raise HpoError(f"the search space has '{name}' (value {value!r}): {reason}")


def check_space(spec_of: Callable[[optuna.Trial], TrialSpec], folders: TrialFolders) -> None:
    """Tries the space and the names of folders on two trials that are not run.

    Raises:
        HpoError: A name cannot act, or two trials get one folder.
    """
    probe = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = set()
    for trial in (probe.ask(), probe.ask()):
        if (folder := folders.of(DecidedTrial(trial, spec_of(trial)))) in seen:
            raise HpoError(
                f"hp_name gave two trials one folder ({folder}), and the second one would "
                "replace the weights of the first; put trial.number into the name"
            )
        seen.add(folder)


def plan_trial(
    trial: DecidedTrial, folders: TrialFolders, compute_objective: Objective, world_size: int
) -> TrialPlan:
    """Makes the folder of a trial, and takes over what an interrupted one has left."""
    checkpoint = folders.begin(trial, world_size)
    epochs = [
        Epoch(metrics["epoch"], as_value(compute_objective(dict(metrics))))
        for metrics in (evaluations(checkpoint) if checkpoint else ())
    ]
    if checkpoint:
        # What the texts of the best epoch were like when the trial was interrupted.
        earlier = trial.study.get_trials(deepcopy=False)[trial.user_attrs[CONTINUES]]
        if SUMMARIES in earlier.user_attrs:
            trial.set_user_attr(SUMMARIES, earlier.user_attrs[SUMMARIES])
    for done in epochs:  # Known to the pruner under the number of the interrupted trial only.
        if isinstance(done.value, float) and float(done.epoch).is_integer():
            trial.report(done.value, int(done.epoch))
    directions = trial.study.directions
    return TrialPlan(
        trial.number,
        trial.spec,
        trial.sampled,
        n_objectives=len(directions),
        maximize=directions[0] == optuna.study.StudyDirection.MAXIMIZE,
        folder=str(folders.of(trial)),
        checkpoint=str(checkpoint) if checkpoint else None,
        epochs=tuple(epochs),
        fitting=remembered(trial.study),
    )
