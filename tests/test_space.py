"""The search space: sampling, conditions, order, and the values of trial 0."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from pydantic import TypeAdapter
from recipe_files import BASE, SHIPPED, as_content, load

from hpo_summarize.config.loader import load_recipe
from hpo_summarize.config.parameters import LORA_KEYS
from hpo_summarize.config.schema import Recipe
from hpo_summarize.config.space import Parameter
from hpo_summarize.errors import RecipeError
from hpo_summarize.search_space import SearchSpace, build_space

BART = {
    "model_type": "bart",
    "task": "seq2seq",
    "hidden_dropout": 0.1,
    "attention_dropout": 0.0,
    "encoder_layers": 6,
    "decoder_layers": 6,
}
T5 = {"model_type": "t5", "task": "seq2seq", "hidden_dropout": 0.1}
KOBART_TEXT = next(p for p in SHIPPED if p.name == "kobart.yaml").read_text(encoding="utf-8")
KOBART = load(KOBART_TEXT)


def make_space(lines: str, extra: str = "", facts: dict[str, Any] = BART) -> SearchSpace:
    indented = "".join(f"  {line}\n" for line in lines.splitlines())
    return build_space(load(f"{BASE}{extra}\nspace:\n{indented}"), facts)


def sample(space: SearchSpace, count: int, seed: int = 0) -> list[optuna.trial.FrozenTrial]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))

    def objective(trial: optuna.Trial) -> float:
        assert space.sample(trial) == trial.params
        return 0.0

    study.optimize(objective, n_trials=count)
    return study.trials


def in_range(recipe: Recipe, name: str, value: Any) -> bool:
    parameter = recipe.space[name]
    if parameter.type == "categorical":
        return any(value == c and type(value) is type(c) for c in parameter.choices)
    kind = int if parameter.type == "int" else float
    return type(value) is kind and parameter.low <= value <= parameter.high


def test_200_random_samples_of_the_kobart_space_obey_every_range_and_condition() -> None:
    trials = sample(build_space(KOBART, BART), 200)
    always = KOBART.space.keys() - {"temperature", "top_p"}
    for trial in trials:
        values = trial.params
        assert all(in_range(KOBART, name, value) for name, value in values.items())
        assert values.keys() - {"temperature", "top_p"} == always
        assert ("temperature" in values) == ("top_p" in values) == values["do_sample"]
        assert values["num_beams"] > 1 and "length_penalty" in values
    assert {trial.params["do_sample"] for trial in trials} == {True, False}


def test_the_depth_is_sampled_only_where_the_model_type_allows_it() -> None:
    only_bart = "space.attention_dropout.when={model_type: bart}"
    space = build_space(load(KOBART_TEXT, only_bart), T5)
    idle = {"encoder_layers", "decoder_layers", "attention_dropout"}
    assert space.parameters.keys() == KOBART.space.keys() - idle
    assert not any(idle & trial.params.keys() for trial in sample(space, 20))


@pytest.mark.parametrize("sampler", [optuna.samplers.RandomSampler, optuna.samplers.TPESampler])
def test_two_spaces_sampled_with_one_seed_give_the_same_values(sampler: Any) -> None:
    drawn = []
    for _ in range(2):
        study = optuna.create_study(sampler=sampler(seed=7))
        space = build_space(KOBART, BART)
        study.optimize(lambda trial, space=space: space.sample(trial)["learning_rate"], n_trials=15)
        drawn.append([trial.params for trial in study.trials])
    assert drawn[0] == drawn[1]
    assert drawn[0] != [trial.params for trial in sample(build_space(KOBART, BART), 15, seed=8)]


def test_implied_conditions_hold_without_being_written() -> None:
    space = make_space(
        "temperature: {type: float, low: 0.1, high: 1.0}\n"
        "length_penalty: {type: float, low: 0.5, high: 2.0}\n"
        "early_stopping: {type: categorical, choices: [true, false]}\n"
        "num_beams: {type: int, low: 1, high: 2}\n"
        "do_sample: {type: categorical, choices: [true, false]}"
    )
    assert list(space.parameters)[:2] == ["num_beams", "do_sample"]
    for trial in sample(space, 60):
        beams = trial.params["num_beams"] > 1
        assert ("temperature" in trial.params) == trial.params["do_sample"]
        assert ("length_penalty" in trial.params) == ("early_stopping" in trial.params) == beams


def test_an_explicit_condition_is_narrowed_by_the_implied_one() -> None:
    space = make_space(
        "num_beams: {type: categorical, choices: [1, 2, 4]}\n"
        "length_penalty: {type: float, low: 0.5, high: 2.0, when: {num_beams: [1, 4]}}"
    )
    for trial in sample(space, 40):
        assert ("length_penalty" in trial.params) == (trial.params["num_beams"] == 4)


def test_a_decoding_parameter_needs_no_condition_where_the_recipe_fixes_its_own() -> None:
    space = make_space("top_p: {type: float, low: 0.5, high: 1}", "generation: {do_sample: true}")
    assert all("top_p" in trial.params for trial in sample(space, 5))


def test_conditions_may_name_fixed_values_defaults_and_chains() -> None:
    space = make_space(
        "warmup_ratio: {type: float, low: 0, high: 0.2, when: {weight_decay: 0.1}}\n"
        "weight_decay: {type: categorical, choices: [0.0, 0.1], when: {scheduler_type: cosine}}\n"
        "scheduler_type: {type: categorical, choices: [linear, cosine]}\n"
        "max_grad_norm: {type: float, low: 0.5, high: 2, when: {optim: adamw_torch_fused}}\n"
        "adam_beta2: {type: float, low: 0.9, high: 0.99, when: {num_epochs: [2, 4]}}",
        "training: {num_epochs: 4}",
    )
    order = list(space.parameters)
    assert order.index("scheduler_type") < order.index("weight_decay") < order.index("warmup_ratio")
    for trial in sample(space, 60):
        values = trial.params
        assert {"max_grad_norm", "adam_beta2"} <= values.keys()
        assert ("weight_decay" in values) == (values["scheduler_type"] == "cosine")
        assert ("warmup_ratio" in values) == (values.get("weight_decay") == 0.1)


def test_a_condition_on_a_number_is_not_one_on_a_truth_value() -> None:
    space = make_space(
        "num_beams: {type: categorical, choices: [1, 2]}\n"
        "weight_decay: {type: float, low: 0.0, high: 0.1, when: {num_beams: [true, 2]}}"
    )
    for trial in sample(space, 20):
        assert ("weight_decay" in trial.params) == (trial.params["num_beams"] == 2)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_trial_0_of_a_shipped_recipe_lies_in_its_space_and_equals_the_fixed_values(
    path: Any,
) -> None:
    recipe = load_recipe(path)
    space = build_space(recipe, BART)
    baseline = space.baseline()
    assert baseline
    for name, value in baseline.items():
        parameter = recipe.space[name]
        if parameter.type == "categorical":
            assert value in parameter.choices
        else:
            assert parameter.low <= value <= parameter.high
    fixed = {**recipe.training.settings(), **recipe.generation.settings()}
    if recipe.lora:
        keys = {key: word for word, key in LORA_KEYS.items()}
        fixed |= {keys.get(key, key): value for key, value in recipe.lora.settings().items()}
    shared = fixed.keys() & baseline.keys()
    assert shared and {name: baseline[name] for name in shared} == {n: fixed[n] for n in shared}


def test_an_enqueued_baseline_is_what_trial_0_runs() -> None:
    space = build_space(KOBART, BART)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(space.baseline())
    study.optimize(lambda trial: float(len(space.sample(trial))), n_trials=1)
    assert study.trials[0].params == space.baseline()
    assert space.baseline()["encoder_layers"] == 6
    assert "temperature" not in space.baseline() and space.baseline()["do_sample"] is False


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("learning_rate: {type: float, low: 1e-3, high: 1e-2, log: true}", 1e-3),
        ("learning_rate: {type: float, low: 1e-7, high: 1e-6, log: true}", 1e-6),
        ("weight_decay: {type: float, low: 0.1, high: 0.3, step: 0.1}", 0.1),
        ("num_epochs: {type: int, low: 4, high: 9}", 4),
        ("num_epochs: {type: int, low: 2, high: 8, step: 3}", 2),
        ("batch_size: {type: categorical, choices: [64, 32, 16]}", 16),
        ("scheduler_type: {type: categorical, choices: [cosine, polynomial]}", "cosine"),
        ("neftune_noise_alpha: {type: float, low: 1, high: 9}", 5.0),
        ("hidden_dropout: {type: float, low: 0.2, high: 0.3}", 0.2),
    ],
)
def test_defaults_and_the_models_own_values_are_moved_into_the_range(line: str, value: Any) -> None:
    assert make_space(line).baseline() == {line.split(":")[0]: value}


def test_a_stepped_baseline_never_passes_the_upper_end() -> None:
    space = make_space("adam_beta1: {type: float, low: 0.1, high: 0.3, step: 0.1}")
    assert space.baseline()["adam_beta1"] == 0.3


def test_a_fixed_value_outside_of_the_range_is_refused_and_not_moved() -> None:
    with pytest.raises(RecipeError, match="space.learning_rate: trial 0 runs the fixed value 1.0"):
        make_space(
            "learning_rate: {type: float, low: 1e-6, high: 1e-4}", "training: {learning_rate: 1.0}"
        )


def test_a_dropout_or_depth_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(RecipeError) as error:
        build_space(KOBART, {**T5, "model_type": "bart"})
    assert {problem.key for problem in error.value.problems} == {
        "space.attention_dropout",
        "space.encoder_layers",
        "space.decoder_layers",
    }
    assert "a model of the type 'bart' has no setting for it" in str(error.value)


def test_a_space_with_nothing_left_is_refused() -> None:
    only_bart = "encoder_layers: {type: int, low: 6, high: 12, when: {model_type: bart}}"
    with pytest.raises(RecipeError, match="nothing is left to search; add at least one parameter"):
        make_space(only_bart, facts=T5)
    with pytest.raises(RecipeError, match="nothing is left to search"):
        build_space(load(BASE), BART)


def test_the_space_explains_each_parameter_in_one_line() -> None:
    lines = build_space(KOBART, BART).explain()
    assert len(lines) == len(KOBART.space)
    assert "learning_rate: 1e-06 to 0.0001, log, trial 0: 5e-05" in lines
    assert "temperature: 0.1 to 1, trial 0: 1.0, only while do_sample is True" in lines
    assert "num_beams: one of 2, 4, 6, 8, trial 0: 4" in lines


@pytest.mark.parametrize(
    ("line", "inside", "wrong", "message"),
    [
        ("{type: int, low: 1, high: 9, step: 4}", 5, 4, "must be 1 plus whole steps of 4, got 4"),
        ("{type: int, low: 1, high: 9}", 9, 10, "must lie between 1 and 9, got 10"),
        ("{type: int, low: 1, high: 9}", 1, 2.0, "must be a whole number, got 2.0"),
        ("{type: float, low: 0, high: 0.3, step: 0.1}", 0.2, 0.25, "must be 0 plus whole"),
        ("{type: float, low: 0, high: 0.3}", 0, True, "must be a number, got True"),
        ("{type: categorical, choices: [0.1, true]}", True, 1, "must be one of [0.1, True], got 1"),
    ],
)
def test_a_value_that_no_trial_can_have_is_named(
    line: str, inside: Any, wrong: Any, message: str
) -> None:
    parameter: Parameter = TypeAdapter(Parameter).validate_python(as_content(line))
    assert parameter.outside(inside) is None
    assert (parameter.outside(wrong) or "").startswith(message)
