"""Overrides, the debug form, samplers and pruners, and recipes that were spoilt at random."""

from __future__ import annotations

import copy
import datetime
import math
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from recipe_files import BASE, SHIPPED, as_content, load, messages
from ruamel.yaml import YAML

from hpo_summarize.config.loader import dump_recipe, load_recipe, parse_recipe
from hpo_summarize.config.parameters import parameters
from hpo_summarize.errors import RecipeError


def test_an_override_is_split_at_its_first_equals_sign_and_read_as_yaml() -> None:
    recipe = load(
        BASE,
        "data.train=a=b",
        "search.storage=sqlite:///x?timeout=3",
        "training.learning_rate=1e-6",
        "lora.r=4",
        "data.special_tokens=['#A#']",
        "search.n_trials=3",
        "search.n_trials=7",
    )
    assert recipe.data.train == "a=b"
    assert recipe.search.storage == "sqlite:///x?timeout=3"
    assert recipe.training.learning_rate == 1e-6
    assert recipe.lora is not None and recipe.lora.r == 4
    assert recipe.data.special_tokens == ["#A#"]
    assert recipe.search.n_trials == 7


@pytest.mark.parametrize("item", ["a.b.c", "=x", "", "=", "a.=1", ".=3", "..a=3", "data.train"])
def test_an_override_without_a_key_or_value_is_refused(item: str) -> None:
    with pytest.raises(RecipeError, match="an override has the form key.path=value"):
        load(BASE, item)


def test_wrong_overrides_are_listed_with_the_other_problems() -> None:
    with pytest.raises(RecipeError) as error:
        load(BASE + "rouge: 3\n", "nonsense", "a.b.c=3", "model.name.x=3", "data.train=*.csv")
    found = messages(error)
    assert set(found) == {"nonsense", "a", "model.name.x", "data.train", "rouge"}
    assert found["a"] == "unknown key (value {'b': {'c': 3}}); drop it"
    assert "goes through a key that holds no mapping" in found["model.name.x"]
    assert "put text that begins with * in quotes" in found["data.train"]


def test_settings_are_not_read_as_yaml_and_come_last() -> None:
    recipe = load(BASE, "output_dir=x", settings={"output_dir": "1: 2", "search.n_trials": 3})
    assert (recipe.output_dir, recipe.search.n_trials) == ("1: 2", 3)


def test_the_study_takes_the_name_of_the_file_only_where_none_is_given() -> None:
    assert load(BASE).search.study_name == "mine"
    assert load(BASE, "search.study_name=other").search.study_name == "other"


def test_the_debug_form_is_small() -> None:
    text = SHIPPED[1].read_text(encoding="utf-8")
    content, small = as_content(text), load(text, debug=True)
    assert (small.search.n_trials, small.training.num_epochs, small.data.max_rows) == (2, 1, 32)
    assert (
        small.space["num_epochs"].choices == [1] and small.space.keys() == content["space"].keys()
    )
    assert small.output_dir == content["output_dir"] + "/debug"


def test_the_debug_form_gives_way_to_what_the_command_line_asks_for() -> None:
    settings = {"search.n_trials": 5, "output_dir": "out"}
    recipe = load(BASE, "training.num_epochs=3", "data.max_rows=7", debug=True, settings=settings)
    assert (recipe.search.n_trials, recipe.training.num_epochs, recipe.data.max_rows) == (5, 3, 7)
    assert recipe.output_dir == "out/debug"


def test_the_debug_form_of_a_search_for_epochs_alone_is_a_search_still() -> None:
    space = "space: {num_epochs: {type: int, low: 2, high: 5}}\n"
    recipe = load(BASE + space, debug=True)
    assert recipe.space["num_epochs"].choices == [1]


def test_a_debug_run_refuses_the_storage_of_other_studies() -> None:
    url = "postgresql://u:canary@h/x"
    recipe = load(BASE + f"search: {{storage: '{url}'}}\n", debug=True)
    assert recipe.search.storage is None
    with pytest.raises(RecipeError, match="a debug run keeps its study in its own") as error:
        load(BASE, debug=True, settings={"search.storage": url})
    assert "canary" not in str(error.value)


def test_the_debug_form_hides_no_missing_output_folder() -> None:
    with pytest.raises(RecipeError, match="output_dir: this key is required"):
        load("model: {name: a}\ndata: {train: t}\n", debug=True)


@pytest.mark.parametrize("content", [None, 5, [1], "x"])
def test_content_from_python_that_is_no_mapping_is_refused(content: Any) -> None:
    with pytest.raises(RecipeError, match="a recipe is a mapping of sections"):
        parse_recipe(content)


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("tpe", "must be a mapping of keys to values, got 'tpe'"),
        ("null", "must be a mapping"),
        ("{name: [a]}", "search.sampler.name: must be text"),
        ("{name: TPESampler}", "must be one of brute_force, .*got 'TPESampler'"),
        ("{name: rnadom}", "did you mean 'random'"),
        ("{seed: -1}", "greater than or equal to 0, got -1"),
        ("{seed: 4294967296}", "must be less than 4294967296"),
        ("{name: random, n_startup_trials: 3}", "n_startup_trials: unknown key .value 3."),
        ("{n_startup_trials: abc}", "n_startup_trials: must be a valid integer, got 'abc'"),
        ("{n_ei_candidates: 0}", "n_ei_candidates: must be greater than or equal to 1, got 0"),
        ("{gamma: 3}", "sampler.gamma: unknown key .value 3."),
        ("{multivariate: false}", "Optuna refuses .*group"),
        ("{name: qmc, qmc_type: foo}", "Optuna refuses .*halton"),
        ("{name: nsgaii, population_size: 1}", "Optuna refuses .*population_size"),
        ("{1: 2}", "keys must be text, got 1"),
    ],
)
def test_a_wrong_sampler_is_refused(sampler: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(BASE + f"search: {{sampler: {sampler}}}")


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        ("[1]", "must be a mapping"),
        ("{name: meridian}", "did you mean 'median'"),
        ("{seed: 3}", "pruner.seed: unknown key .value 3."),
        ("{n_warmup: 3}", "did you mean 'n_warmup_steps'"),
        ("{n_warmup_steps: x}", "must be a valid integer, got 'x'"),
        ("{interval_steps: 0}", "Optuna refuses .*at least 1"),
        ("{name: percentile}", "search.pruner.percentile: this key is required"),
        ("{name: threshold}", "Optuna refuses .*lower or upper"),
        ("{name: hyperband, min_resource: 0}", "min_resource: must be greater than or equal to 1"),
        (
            "{name: hyperband, min_resource: 3, max_resource: 2}",
            "search.pruner: max_resource .* must be at least min_resource .*, got 2 and 3",
        ),
        ("{name: patient, wrapped_pruner: median, patience: 2}", "wrapped_pruner: unknown key"),
    ],
)
def test_a_wrong_pruner_is_refused(pruner: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(BASE + f"search: {{pruner: {pruner}}}")


def test_a_hyperband_that_could_prune_nothing_is_refused() -> None:
    epochs = "space: {num_epochs: {type: int, low: 2, high: 10}}\n"
    load(BASE + epochs + "search: {pruner: {name: hyperband, max_resource: 4}}")
    with pytest.raises(RecipeError, match="pruner: max_resource .*, got 3 and 4"):
        load(BASE + epochs + "search: {pruner: {name: hyperband, max_resource: 3}}")
    wrapped = "{name: patient, patience: 1, wrapped: {name: hyperband, min_resource: 11}}"
    with pytest.raises(RecipeError, match="pruner.wrapped: max_resource .*, got 10 and 11"):
        load(BASE + epochs + f"search: {{pruner: {wrapped}}}")


def test_samplers_that_cannot_search_this_space_are_refused() -> None:
    space = "space: {learning_rate: {type: float, low: 1e-5, high: 1e-3}}\n"
    with pytest.raises(RecipeError, match="space.learning_rate: .*brute_force.*give it a step"):
        load(BASE + space, "search.sampler.name=brute_force")
    with pytest.raises(
        RecipeError, match="search.warm_start: 'brute_force' would take the earlier"
    ):
        load(BASE, "search={sampler: {name: brute_force}, warm_start: sqlite:///old.db}")
    with pytest.raises(RecipeError, match="'cmaes' takes one objective"):
        load(BASE, "search={sampler: {name: cmaes}, objective: [rouge1, rouge2]}")


@pytest.mark.parametrize("name", ["tpe", "random", "gp", "qmc", "nsgaii", "nsgaiii"])
def test_every_sampler_is_accepted_by_its_short_name(name: str) -> None:
    assert load(BASE, f"search.sampler.name={name}").search.sampler.name == name


GARBAGE: list[Any] = [
    *(None, True, 0, -1, 0.5, math.inf, math.nan, 10**30, -(10**400), "", "x", "한국어", "\0"),
    *("\ud800", [], [[1]], [None], {}, {"a": 1}, {1: 2}, {"type": "float"}, b"x", {1}, (1, 2)),
    *({"do_sample": True}, {"type": "categorical", "choices": [[1]]}, "int", [True, 1]),
    *({"type": "int", "low": -(10**400), "high": 10**400}, {"a.b": 1}),
    *({"type": "categorical", "choices": ["x", 3, None]}, {"name": "hyperband"}),
    datetime.date(2020, 1, 1),
]
KEYS = ["typo", "type", "low", "step", "choices", "when", "name", 1, None, "", "temperature"]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every `(container, key)` in nested dictionaries and lists."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield value, key
        if isinstance(inner, dict | list):
            yield from _places(inner)


def _spoil(content: Any, draw: random.Random) -> None:
    container, key = draw.choice(list(_places(content)))
    choice = draw.random()
    if choice < 0.5:
        container[key] = copy.deepcopy(draw.choice(GARBAGE))
    elif choice < 0.75 or isinstance(container, list):
        container.pop(key)
    else:
        container[draw.choice(KEYS)] = copy.deepcopy(draw.choice(GARBAGE))


@pytest.mark.slow
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_recipe_spoilt_at_random_gives_a_recipe_error_or_loads(path: Any) -> None:
    original = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    refused = 0
    for seed in range(250):
        draw, content = random.Random(seed), copy.deepcopy(original)
        for _ in range(draw.randint(1, 3)):
            _spoil(content, draw)
        try:
            recipe = parse_recipe(content)
        except RecipeError as error:
            assert error.problems and all(p.key and p.message for p in error.problems)
            str(error).encode("utf-8", "surrogatepass")
            refused += 1
        else:
            again = parse_recipe(as_content(dump_recipe(recipe)))
            assert again.model_dump() == recipe.model_dump()
    assert 150 < refused < 250


def test_the_loaded_recipe_cannot_be_changed() -> None:
    recipe = load_recipe(SHIPPED[0])
    with pytest.raises(ValueError, match="frozen"):
        recipe.output_dir = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "override"),
    [
        ("data: {{train: {}}}", None),
        ("", "data.train={}"),
        ("", "data{}=1"),
    ],
)
def test_thousands_of_levels_are_refused_at_once(text: str, override: str | None) -> None:
    nested = ".a" * 20_000 if override == "data{}=1" else "[" * 20_000 + "]" * 20_000
    before = time.process_time()
    with pytest.raises(RecipeError, match="is nested more than 20 levels deep; flatten it"):
        load(BASE + text.format(nested), *([override.format(nested)] if override else ()))
    assert time.process_time() - before < 2


def test_a_mapping_of_thousands_of_levels_is_refused_too() -> None:
    content: dict[str, Any] = {}
    for _ in range(5_000):
        content = {"data": content}
    with pytest.raises(RecipeError, match="is nested more than 20 levels deep"):
        parse_recipe(content)


@pytest.mark.slow
def test_no_message_proposes_what_is_refused_itself() -> None:
    for section in ("training", "generation", "lora", "space"):
        for name in parameters():
            value = "{type: int, low: 1, high: 3}" if section == "space" else "7"
            with pytest.raises(RecipeError) as error:
                load(BASE + "lora: {r: 4}\n", f"{section}.{name}x={value}")
            message = messages(error)[f"{section}.{name}x"]
            if proposed := re.search(r"did you mean '(\w+)'", message):
                try:
                    load(BASE + "lora: {r: 4}\n", f"{section}.{proposed[1]}={value}")
                except RecipeError as refused:
                    wrong = re.compile(
                        "another place|called '|cannot be used|cannot act in a trial"
                    )
                    assert not wrong.search(str(refused)), (name, message, refused)
