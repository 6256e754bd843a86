"""The methods that are compared: each is a function from a job to what it found."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from benchmarking.observation import Observation
from benchmarking.stock import build_stock_trainer, stock_name, stock_space
from optuna.trial import FrozenTrial
from transformers import AutoModelForSeq2SeqLM

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import parse_recipe
from hpo_summarize.config.schema import Recipe
from hpo_summarize.generation import clear_idle_flags
from hpo_summarize.models.factory import build_model
from hpo_summarize.optimizer import OptunaOptimizer
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.study.storage import build_storage, default_storage_url

# What a user of ours would add to the recipe: epochs ranked by greedy decoding of a part.
EPOCH_EVAL = {"samples": 128, "num_beams": 1}
# Of the Hugging Face documentation and of Optuna's.
_PRUNER = {"n_startup_trials": 5, "n_warmup_steps": 3, "interval_steps": 1}
_STUDY = "study"


@dataclass
class Job:
    """One search to be done.

    Attributes:
        recipe: Data, space, number of trials and seed.
        folder: An empty folder for whatever is written.
        observation: An open observation, which is to be among the callbacks of the trainer.
    """

    recipe: Recipe
    folder: Path
    observation: Observation

    @functools.cached_property
    def experiment(self) -> Experiment:
        """Model, data and metric of the recipe."""
        return Experiment(self.recipe)


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        trials: All its trials.
        value: The best value that it reports.
        params: The values of the winner, by our names.
        weights: The checkpoint of the winner.
    """

    trials: list[FrozenTrial]
    value: float
    params: dict[str, Any]
    weights: Path


def search_stock(job: Job) -> Found:
    """`Seq2SeqTrainer.hyperparameter_search` as the Hugging Face documentation shows it.

    It searches the fields of `Seq2SeqTrainingArguments` in the space. Its faults are left as they
    are: a warm-up ratio is rounded down to 0 steps, and the pruner compares trials at optimizer
    steps instead of epochs. Every model is loaded with a config of its own, so that the key-value
    cache stays on.
    """
    start, space = str(job.recipe.model.name), stock_space(job.experiment)
    trainer = build_stock_trainer(
        job.experiment,
        job.folder,
        "epoch",
        model_init=lambda: AutoModelForSeq2SeqLM.from_pretrained(start),
        callbacks=[job.observation],
    )

    def hp_space(trial: optuna.Trial) -> dict[str, Any]:
        return {str(stock_name(name)): value for name, value in space.sample(trial).items()}

    search, storage = job.recipe.search, optuna.storages.InMemoryStorage()
    trainer.hyperparameter_search(
        hp_space=hp_space,
        compute_objective=lambda metrics: metrics[f"eval_{search.objectives[0]}"],
        n_trials=search.n_trials,
        direction=search.direction,
        backend="optuna",
        sampler=optuna.samplers.TPESampler(seed=search.sampler.seed),
        pruner=optuna.pruners.MedianPruner(**_PRUNER),
        storage=storage,
        study_name=_STUDY,
    )
    study = optuna.load_study(study_name=_STUDY, storage=storage)
    return _found(study, job.folder / f"run-{study.best_trial.number}")


def search_train_once(job: Job) -> Found:
    """Train to the end, evaluate once: each trial reports one value, that of its last epoch.

    Plain Optuna around `Seq2SeqTrainer`, with the whole space. The pruner is asked when there is
    nothing left to save.
    """
    recipe, experiment = job.recipe, job.experiment

    def objective(trial: optuna.Trial) -> float:
        values = experiment.space.sample(trial)
        spec = TrialSpec.of(values)
        model = build_model(recipe, experiment.tokenizer, spec)
        model.generation_config.update(**spec.generation)
        clear_idle_flags(model.generation_config)
        folder = job.folder / f"run-{trial.number}"
        trainer = build_stock_trainer(
            experiment, folder, "no", spec.training, model=model, callbacks=[job.observation]
        )
        trainer.train()
        value = trainer.evaluate()[f"eval_{recipe.search.objectives[0]}"]
        trainer.save_model(str(folder / "checkpoint-last"))
        trial.report(value, int(values.get("num_epochs", recipe.training.num_epochs)))
        if trial.should_prune():
            raise optuna.TrialPruned()
        return value

    study = optuna.create_study(
        direction=recipe.search.direction,
        sampler=optuna.samplers.TPESampler(
            seed=recipe.search.sampler.seed, multivariate=True, group=True
        ),
        pruner=optuna.pruners.MedianPruner(**_PRUNER),
    )
    study.optimize(objective, n_trials=recipe.search.n_trials)
    return _found(study, job.folder / f"run-{study.best_trial.number}")


def search_ours(job: Job, **search: Any) -> Found:
    """`OptunaOptimizer` with the recipe.

    Args:
        job: The search.
        **search: Keys of the section `search` that replace those of the recipe.
    """
    content = job.recipe.model_dump(exclude_unset=True)
    content["search"] = {"epoch_eval": EPOCH_EVAL, **content.get("search", {}), **search}
    optimizer = OptunaOptimizer(parse_recipe(content), output_dir=job.folder)
    optimizer.prepare()
    optimizer.trainer.add_callback(job.observation)
    optimizer.optimize()
    best = json.loads((job.folder / "best_params.json").read_text(encoding="utf-8"))
    storage = build_storage(default_storage_url(job.folder))
    trials = [
        trial
        for name in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=name, storage=storage).trials
    ]
    folder = optimizer.studies.folder / f"trial-{best['best_trial_number']}"
    (weights,) = folder.glob("checkpoint-*")
    return Found(trials, best["best_value"], best["best_params"], weights)


def search_unpruned(job: Job) -> Found:
    """`joint` with every trial trained to its end and, as all are kept, measured in full.

    It shows how well the cheap value of an epoch ranks trials: `joint` measures only the top ones
    in full.
    """
    n_trials = job.recipe.search.n_trials
    return search_ours(job, decode="joint", pruner=None, keep_trials=n_trials)


METHODS: dict[str, Callable[[Job], Found]] = {
    "stock": search_stock,
    "train_once": search_train_once,
    "joint": functools.partial(search_ours, decode="joint"),
    "staged": functools.partial(search_ours, decode="staged"),
    "unpruned": search_unpruned,
}


def _found(study: optuna.Study, folder: Path) -> Found:
    best = study.best_trial
    (weights,) = folder.glob("checkpoint-*")
    return Found(study.trials, study.best_value, dict(best.params), weights)
