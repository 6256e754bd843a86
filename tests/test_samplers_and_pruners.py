"""Every sampler and pruner by its short name, run for real on a conditional space, and resumed."""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from recipe_files import BASE, SHIPPED, load

from hpo_summarize import OptunaPruningCallback, SummarizationTrainer
from hpo_summarize.config.loader import parse_recipe
from hpo_summarize.config.optuna_rules import NEEDED_PACKAGES, PRUNERS, SAMPLERS, optuna_class
from hpo_summarize.config.schema import PrunerSection, SearchSection
from hpo_summarize.errors import RecipeError
from hpo_summarize.search_space import SearchSpace, build_space
from hpo_summarize.study.run import open_study, run_study
from hpo_summarize.study.samplers import build_pruner, build_sampler, prune_after
from hpo_summarize.study.trials import finished_trials
from hpo_summarize.training.callbacks import report

CONTINUOUS: dict[str, Any] = {
    "learning_rate": {"type": "float", "low": 1e-5, "high": 1e-2, "log": True},
    "num_epochs": {"type": "int", "low": 1, "high": 9},
    "do_sample": {"type": "categorical", "choices": [False, True]},
    "temperature": {"type": "float", "low": 0.1, "high": 1.0},
}
FEW: dict[str, Any] = {
    "num_beams": {"type": "int", "low": 1, "high": 2},
    "length_penalty": {"type": "categorical", "choices": [0.5, 1.0, 2.0]},
}
SETTINGS: dict[str, dict[str, Any]] = {
    "percentile": {"percentile": 50.0},
    "patient": {"patience": 1, "wrapped": {"name": "median", "n_startup_trials": 1}},
    "threshold": {"lower": 0.0},
}


def space_of(parameters: dict[str, Any]) -> SearchSpace:
    content = {"model": {"name": "a"}, "data": {"train": "t"}, "output_dir": "o"}
    recipe = parse_recipe({**content, "space": parameters})
    return build_space(recipe, {"model_type": "bart", "task": "seq2seq"})


def open_at(folder: Path, space: SearchSpace, worker: int = 0, **search: Any) -> optuna.Study:
    section = SearchSection.model_validate(search)
    url = f"journal://{folder / 'study.log'}"
    baselines = [space.baseline()]
    return open_study(section, "study", url, ["maximize"], baselines, worker, n_epochs=9)


def quality(values: dict[str, Any], epoch: int, n_epochs: int) -> float:
    """As a training would: the better the learning rate, and falling again where it is high."""
    rate = values.get("learning_rate", 1e-4)
    height = 0.2 + 20 * rate + 0.1 * values.get("temperature", 0.5)
    return height * (epoch if rate < 1e-3 else min(epoch, 4 - epoch)) / n_epochs


def run(study: optuna.Study, space: SearchSpace, n_trials: int) -> None:
    def objective(trial: optuna.Trial) -> float:
        values = space.sample(trial)
        n_epochs = values.get("num_epochs", 3)
        for epoch in range(1, n_epochs + 1):
            if report(trial, quality(values, epoch, n_epochs), epoch):
                raise optuna.TrialPruned
        return quality(values, n_epochs, n_epochs)

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # Some are experimental, and some say what they fall back to.
        run_study(study, objective, n_trials)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_searches_a_conditional_space_and_goes_on_after_a_stop(
    name: str, tmp_path: Path
) -> None:
    space = space_of(FEW if name == "brute_force" else CONTINUOUS)
    sampler = load(BASE, f"search.sampler.name={name}").search.sampler
    few_first = {"n_startup_trials": 3} if name in ("tpe", "gp", "cmaes") else {}
    for n_trials in (3, 8):  # The second time as the same command again would do it.
        study = open_at(
            tmp_path, space, sampler={**sampler.model_dump(), **few_first}, pruner={"name": "none"}
        )
        run(study, space, n_trials)
        if name != "brute_force":
            assert len(finished_trials(study)) == n_trials
    assert isinstance(study.sampler, optuna_class("sampler", name))
    drawn = [tuple(sorted(trial.params.items())) for trial in study.trials]
    assert drawn[0] == tuple(sorted(space.baseline().items()))
    if name == "brute_force":
        # A length penalty acts with two beams alone: four combinations, and each of them once.
        assert len(drawn) == len(set(drawn)) == 4
        return
    assert len(set(drawn)) == len(drawn) == 8
    for trial in study.trials:
        assert ("temperature" in trial.params) is trial.params["do_sample"]


def test_workers_and_resumed_runs_draw_from_one_scrambled_sequence(tmp_path: Path) -> None:
    space = space_of({name: CONTINUOUS[name] for name in ("learning_rate", "num_epochs")})
    sampler = {"name": "qmc", "scramble": True, "seed": 3}
    drawn = []
    for folder, workers in (("alone", [0]), ("shared", [0, 1, 0, 1])):
        (tmp_path / folder).mkdir()
        for turn, worker in enumerate(workers, start=1):
            study = open_at(tmp_path / folder, space, worker, sampler=sampler)
            run(study, space, turn * 8 // len(workers))
        drawn.append([trial.params for trial in study.trials])
    alone, shared = drawn
    assert alone == shared
    assert len({tuple(values.items()) for values in shared}) == 8


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_runs_goes_on_after_a_stop_and_prunes_no_good_trial(
    name: str, tmp_path: Path
) -> None:
    space = space_of(CONTINUOUS)
    overrides = {"name": name, **SETTINGS.get(name, {})}
    pruner = parse_recipe(
        {
            "model": {"name": "a"},
            "data": {"train": "t"},
            "output_dir": "o",
            "search": {"pruner": overrides},
        }
    ).search.pruner
    assert pruner is not None
    for n_trials in (10, 30):
        study = open_at(
            tmp_path, space, sampler={"name": "random", "seed": 1}, pruner=pruner.model_dump()
        )
        run(study, space, n_trials)
    assert type(study.pruner).__name__ == PRUNERS[name]
    states = [trial.state.name for trial in finished_trials(study)]
    assert len(states) == 30
    assert ("PRUNED" in states) is (name != "none")
    assert states.count("COMPLETE") >= 3


def test_halving_decides_at_the_same_epochs_for_long_and_short_trials(tmp_path: Path) -> None:
    space = space_of(CONTINUOUS)
    study = open_at(
        tmp_path,
        space,
        sampler={"name": "random", "seed": 1},
        pruner={"name": "successive_halving", "reduction_factor": 2},
    )
    run(study, space, 30)
    pruned = {trial.last_step for trial in study.trials if trial.state.name == "PRUNED"}
    assert pruned and pruned <= {3, 6}  # Of nine epochs: a third, and twice that.
    assert all(t.state.name == "COMPLETE" for t in study.trials if t.params["num_epochs"] < 3)


@pytest.mark.parametrize("name", NEEDED_PACKAGES)
def test_a_missing_package_is_named_before_anything_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = "sampler" if name in SAMPLERS else "pruner"
    load(BASE, f"search.{section}.name={name}")
    monkeypatch.setitem(sys.modules, NEEDED_PACKAGES[name], None)  # As Python marks what is absent.
    pattern = f"search.{section}.name: '{name}' needs the package .*pip install .*samplers"
    with pytest.raises(RecipeError, match=pattern):
        load(BASE, f"search.{section}.name={name}")


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        (
            "{patience: 2, wrapped: median}",
            "pruner.wrapped: must be a mapping of keys to values, got 'median'",
        ),
        ("{patience: 2, wrapped: {percentile: 3.0}}", "pruner.wrapped.name: this key is required"),
        ("{patience: 2, wrapped: {name: medain}}", "wrapped.name: .*did you mean 'median'"),
        (
            "{patience: 2, wrapped: {name: median, n_warmup: 1}}",
            "wrapped.n_warmup: unknown key .*n_warmup_steps",
        ),
        ("{patience: 2, wrapped: {name: percentile}}", "wrapped.percentile: this key is required"),
        ("{patience: 2, wrapped: {name: median, interval_steps: 0}}", "wrapped: Optuna refuses"),
        ("{wrapped: {name: median}}", "pruner.patience: this key is required"),
    ],
)
def test_a_wrong_pruner_inside_patient_is_refused(pruner: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(BASE, f"search.pruner={pruner}", "search.pruner.name=patient")


def test_patient_wraps_the_pruner_that_the_recipe_names() -> None:
    pruner: Any = build_pruner(
        "patient", patience=2, wrapped={"name": "percentile", "percentile": 9}
    )
    assert isinstance(pruner._wrapped_pruner, optuna.pruners.PercentilePruner)
    alone: Any = build_pruner("patient", patience=2)
    assert alone._wrapped_pruner is None


@pytest.mark.parametrize("name", [*SAMPLERS, *PRUNERS])
def test_the_shipped_recipe_says_when_each_one_pays(name: str) -> None:
    text = next(path for path in SHIPPED if path.name == "kobart.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.lstrip().startswith("#")]
    assert any(re.search(rf"\b{name}\b", line) for line in lines)


# Never before a third.


class Always(optuna.pruners.BasePruner):
    """Prunes whenever it is asked, and notes when that was."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        self.asked.append((trial.number, trial.last_step or 0))
        return True


@pytest.mark.slow
def test_no_trial_is_pruned_before_a_third_of_its_own_epochs(make_trainer: Any) -> None:
    trainer, pruner = make_trainer(SummarizationTrainer), Always()
    trainer.prune_after = 1 / 3
    study = optuna.create_study(pruner=pruner)
    epochs = [1, 2, 3, 4, 6, 7]
    trainer.set_up_search(lambda trial: {"num_train_epochs": epochs[trial.number]})
    study.optimize(trainer.run_trial, n_trials=len(epochs))
    assert [trial.last_step for trial in study.trials] == [1, 1, 1, 2, 2, 3]
    assert pruner.asked == list(enumerate([1, 1, 1, 2, 2, 3]))


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=f"prune_after is a share .*not {share}; give 1/3"):
        OptunaPruningCallback(optuna.create_study().ask(), prune_after=share)


@pytest.mark.parametrize(
    ("section", "share"),
    [
        ({}, 1 / 3),
        ({"name": "hyperband", "reduction_factor": 2}, 1 / 3),
        ({"n_startup_trials": 9}, 1 / 3),
        ({"n_warmup_steps": 0}, 0.0),
        ({"name": "successive_halving", "min_resource": 1}, 0.0),
        ({"name": "patient", "patience": 1}, 1 / 3),
        ({"name": "patient", "patience": 1, "wrapped": {"name": "median"}}, 1 / 3),
        ({"name": "patient", "patience": 1, "wrapped": {"n_warmup_steps": 2}}, 0.0),
    ],
)
def test_the_recipe_can_say_itself_when_pruning_begins(
    section: dict[str, Any], share: float
) -> None:
    assert prune_after(PrunerSection.model_validate(section)) == share


def test_brute_force_goes_on_beside_trials_that_were_cut_off_while_they_were_sampled(
    tmp_path: Path,
) -> None:
    kinds = {name: optuna.distributions.CategoricalDistribution([1, 2]) for name in ("a", "b")}
    study = optuna.create_study(sampler=build_sampler("brute_force", seed=1))
    for names in ((), ("a",), ("a", "b")):
        cut_off = optuna.trial.create_trial(
            state=optuna.trial.TrialState.FAIL,
            params=dict.fromkeys(names, 1),
            distributions={name: kinds[name] for name in names},
        )
        study.add_trial(cut_off)

    def objective(trial: optuna.Trial) -> float:
        return float(sum(trial.suggest_categorical(name, [1, 2]) for name in kinds))

    study.optimize(objective)
    tried = [(t.params["a"], t.params["b"]) for t in study.trials if t.state.name == "COMPLETE"]
    assert sorted(tried) == [(1, 2), (2, 1), (2, 2)]


def test_brute_force_ends_a_study_that_hyperband_parts_into_brackets(tmp_path: Path) -> None:
    section = SearchSection.model_validate(
        {"sampler": {"name": "brute_force"}, "pruner": {"name": "hyperband"}}
    )
    study = open_study(section, "study", f"sqlite:///{tmp_path / 'a.db'}", ["maximize"], n_epochs=9)
    run_study(study, lambda trial: trial.suggest_int("x", 1, 3), 20)
    assert sorted(trial.params["x"] for trial in study.trials) == [1, 2, 3]
    run_study(study, lambda trial: trial.suggest_int("x", 1, 3), 20)
    assert len(study.trials) == 3


def test_hyperband_prunes_long_trials_after_a_short_first_one() -> None:
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.RandomSampler(seed=1),
        pruner=build_pruner("hyperband", n_epochs=10),
    )

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0, 1)
        for epoch in range(1, 11 if trial.number else 3):
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return value

    study.optimize(objective, n_trials=20)
    assert any(trial.state.name == "PRUNED" for trial in study.trials)
