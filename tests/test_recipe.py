"""Recipes: what can be loaded, and what is said about everything that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_files import BASE, SHIPPED, as_content, load, messages

from hpo_summarize.config.loader import dump_recipe, load_recipe, parse_recipe
from hpo_summarize.errors import RecipeError


def test_the_shipped_recipes_are_found() -> None:
    assert len(SHIPPED) >= 3
    assert {"bart.yaml", "kobart.yaml", "quickstart.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
@pytest.mark.parametrize("debug", [False, True])
def test_every_shipped_recipe_loads_and_its_dump_loads_to_the_same(path: Path, debug: bool) -> None:
    recipe = load_recipe(path, debug=debug)
    assert recipe.space and recipe.search.study_name == path.stem
    assert parse_recipe(as_content(dump_recipe(recipe))).model_dump() == recipe.model_dump()


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-6", 1e-6), ("1E-6", 1e-6), (".5", 0.5), ("5", 5.0), ("012", 12.0), ("1_0", 10.0)],
)
def test_numbers_are_read_as_yaml_1_2_writes_them(written: str, value: float) -> None:
    recipe = load(BASE + f"training: {{learning_rate: {written}}}")
    assert recipe.training.learning_rate == value


@pytest.mark.parametrize("text", ["no", "yes", "on", "12:30:00", "1:2", "한국어/출력", "a b"])
def test_text_that_yaml_1_1_would_turn_into_something_else_stays_text(text: str) -> None:
    assert load(BASE, f"output_dir={text}").output_dir == text


@pytest.mark.parametrize(
    "text", ["012", "1e-6", "null", "~", "#x", "- a", "*a", "2020-01-01", "ㅎ "]
)
def test_a_dump_keeps_text_that_looks_like_something_else(text: str) -> None:
    content = {"model": {"name": "a"}, "data": {"train": text}, "output_dir": text}
    dumped = parse_recipe(as_content(dump_recipe(parse_recipe(content))))
    assert dumped.output_dir == text and dumped.data.train == text


def test_a_dump_leaves_out_defaults_that_the_space_or_another_key_replaces() -> None:
    recipe = load(
        BASE + "training: {warmup_steps: 10}\nlora: {}\nspace:\n"
        "  learning_rate: {type: float, low: 1e-3, high: 1e-2}\n"
        "  lora_r: {type: categorical, choices: [32, 64]}\n"
        "  gradient_accumulation_steps: {type: int, low: 1, high: 2}\n"
    )
    dumped = as_content(dump_recipe(recipe))
    assert not {"warmup_ratio", "learning_rate", "batch_size"} & set(dumped["training"])
    assert "r" not in dumped["lora"] and dumped["lora"]["alpha"] == 16
    assert parse_recipe(dumped).model_dump() == recipe.model_dump()


def test_a_recipe_that_searches_the_batch_per_device_has_no_fixed_batch_in_its_dump() -> None:
    space = "space: {per_device_train_batch_size: {type: int, low: 1, high: 4}}"
    recipe = load(BASE + space)
    assert parse_recipe(as_content(dump_recipe(recipe))).model_dump() == recipe.model_dump()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "this one is empty"),
        ("# only a comment", "this one is empty"),
        ("- a\n- b", r"this one holds \['a', 'b'\]"),
        ("hello", "this one holds 'hello'"),
        ("5", "this one holds 5"),
        (BASE + "output_dir: b", 'line 4.*duplicate key "output_dir"'),
        (BASE + "search: {n_trials: 1, n_trials: 2}", 'duplicate key "n_trials"'),
        (BASE + "---\na: 1", "another document"),
        (BASE + "a: &x 1\nb: *x", r"line 5 uses an alias \(\*x\); write the value out"),
        (BASE + "a: [", "not valid YAML at line"),
        (BASE + "a: \0", "special characters are not allowed"),
        (BASE.encode() + b"# \xe9", "cannot be read.*utf-8"),
        (BASE.encode("utf-16"), "cannot be read.*utf-8"),
        (BASE + "a: " + "[" * 600 + "]" * 600, "line 4 is nested more than 20 levels deep"),
    ],
)
def test_a_file_that_is_no_mapping_of_sections_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load(text)


@pytest.mark.parametrize(
    "value",
    ["!!python/object/apply:os.system ['x']", "!!python/name:os.system", "!mine 3", "!!int x"]
    + ["!!int ''", "!!float abc", "!!bool maybe", "2020-13-45", "+_", "9" * 5000, "0x" + "f" * 5000]
    + ["!!timestamp x", "!!map [a]", "<<", "=", "{a: ", '"\\q"', "@a"],
)
def test_a_value_that_yaml_cannot_build_is_refused_in_a_file_and_in_an_override(value: str) -> None:
    with pytest.raises(RecipeError, match="not valid YAML"):
        load(BASE + f"training:\n  learning_rate: {value}\n")
    with pytest.raises(RecipeError, match="training.learning_rate: not valid YAML"):
        load(BASE, f"training.learning_rate={value}")


@pytest.mark.parametrize("path", ["/no/such/file.yaml", ".", "a\0b", "x" * 5000])
def test_a_path_that_cannot_be_read_is_refused(path: str) -> None:
    with pytest.raises(RecipeError, match="cannot be read.*give the path of a YAML file"):
        load_recipe(path)


def test_misspelt_keys_of_every_level_are_listed_at_once_with_the_nearest_name() -> None:
    with pytest.raises(RecipeError) as error:
        load(
            BASE + "serach: 1\nlora: {alhpa: 2, lora_r: 3}\nrouge: {tokeniser: auto}\n"
            "training: {num_epoch: 7, num_train_epochs: 1, num_beams: 4, hidden_dropout: 0.1}\n"
            "generation: {num_beam: 3, max_length: 9, num_beam_groups: 2}\n"
            "search: {ntrials: 3, sampler: {n_start_trials: 4}, pruner: {name: medain}}\n"
            "space: {learning_rat: {type: float, low: 1, high: 2},\n"
            "        do_sample: {type: categorcal}, num_beams: {type: int, lo: 1, high: 2}}\n"
        )
    found = messages(error)
    assert found.pop("space.num_beams.low") == "this key is required and is not given"
    expected = {
        "serach": "unknown key (value 1); did you mean 'search'?",
        "lora.alhpa": "unknown key (value 2); did you mean 'alpha'?",
        "lora.lora_r": "this field is called 'r' here; use that name",
        "rouge.tokeniser": "unknown key (value 'auto'); did you mean 'tokenizer'?",
        "training.num_epoch": "unknown key (value 7); did you mean 'num_epochs'?",
        "training.num_train_epochs": "this field is called 'num_epochs' here; use that name",
        "training.num_beams": "this key belongs to the section generation (value 4); move it there",
        "training.hidden_dropout": "it cannot be fixed here (value 0.1), only searched; "
        "move it to the space",
        "generation.num_beam": "unknown key (value 3); did you mean 'num_beams'?",
        "generation.max_length": "this is set in another place: generation.max_new_tokens",
        "generation.num_beam_groups": "cannot be used here (value 2): transformers runs this form "
        "of decoding only with code from the Hub; drop it",
        "search.ntrials": "unknown key (value 3); did you mean 'n_trials'?",
        "search.sampler.n_start_trials": "unknown key (value 4); did you mean 'n_startup_trials'?",
        "search.pruner.name": "must be one of hyperband, median, none, patient, percentile, "
        "successive_halving, threshold, wilcoxon, got 'medain'; did you mean 'median'?",
        "space.learning_rat": "nothing in a model, its training or its decoding has this name; "
        "did you mean 'learning_rate'?",
        "space.do_sample": "type must be float, int or categorical, got 'categorcal'",
        "space.num_beams.lo": "unknown key (value 1); did you mean 'low'?",
    }
    assert found == expected
    assert str(error.value).splitlines()[0].endswith("mine.yaml: 18 errors found")


@pytest.mark.parametrize("value", ["null", "3", "[1]", "text", "true"])
def test_a_section_of_another_type_is_refused_beside_all_others(value: str) -> None:
    names = ["model", "data", "training", "generation", "rouge", "search", "space"]
    with pytest.raises(RecipeError) as error:
        load("\n".join(f"{name}: {value}" for name in names))
    found = messages(error)
    assert set(found) == {*names, "output_dir"}
    assert all("must be a mapping of keys to values, got" in found[name] for name in names)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.name", "''", "must have at least 1 character, got ''"),
        ("model.from_config", "{a: 1}", None),
        ("data.train", "[1]", "must be text"),
        ("data.train", "{a: 1}", "must be text .* or a valid list, got {'a': 1}"),
        ("data.encoding", "klingon", "no encoding 'klingon'"),
        ("data.empty_rows", "drpo", "must be 'refuse' or 'drop', got 'drpo'; did you mean 'drop'"),
        ("data.validation_fraction", "1", "must be less than 1, got 1"),
        ("training.learning_rate", "-1", "must be greater than 0, got -1"),
        ("training.learning_rate", ".inf", "must be a finite number, got inf"),
        ("training.learning_rate", "'1'", "must be a valid number, got '1'"),
        ("training.num_epochs", ".nan", "greater than 0, got nan"),
        ("training.batch_size", "8.0", "must be a valid integer, got 8.0"),
        ("training.batch_size", "true", "must be a valid integer, got True"),
        ("training.warmup_ratio", "1.0", "must be less than 1, got 1.0"),
        ("training.scheduler_type", "cosin", "must be 'linear', .*did you mean 'cosine'"),
        ("training.optim", "adamw_torhc", "did you mean 'adamw_torch'"),
        ("training.max_grad_norm", "-3", "must be greater than or equal to 0, got -3"),
        ("training.label_smoothing_factor", "1.0", "must be less than 1, got 1.0"),
        ("training.seed", "4294967296", "must be less than 4294967296, got 4294967296"),
        ("training.max_steps", "1.5", "set num_epochs, which may be a fraction"),
        ("training.gradient_checkpointing", "1", "must be a valid boolean, got 1"),
        ("training.output_dir", "x", "set in another place: output_dir"),
        ("training.per_device_train_batch_size", "8", "only splits batch_size"),
        ("training.gradient_accumulation_steps", "8", "only splits batch_size"),
        ("generation.temperature", "0", "must be greater than 0, got 0"),
        ("generation.top_p", "1.5", "must be less than or equal to 1, got 1.5"),
        (
            "generation.early_stopping",
            "nver",
            "must be a valid boolean or 'never', got 'nver'; did you mean 'never'",
        ),
        ("generation.num_return_sequences", "2", "each dialogue gets one summary"),
        ("generation.stop_strings", "2020-01-01", "must not be a date"),
        ("generation.max_new_tokens", "1" * 30, "below 2 to the power of 63"),
        ("generation.bad_words_ids", "[" * 30 + "]" * 30, "nested more than 20 levels deep"),
        ("lora.bias", "some", "must be 'none', 'all' or 'lora_only', got 'some'"),
        ("lora.modules_to_save", "x", "must be a valid list, got 'x'"),
        ("lora.dropout", "1.0", "must be less than 1, got 1.0"),
        ("rouge.references", "men", "did you mean 'mean'"),
        ("search.n_trials", "0", "must be greater than or equal to 1, got 0"),
        ("search.objective", "rougel", "got 'rougel'; did you mean 'rougeL'"),
        ("search.objective", "[rouge1, rouge1]", "every value must differ, and 'rouge1' is in"),
        ("search.study_name", "a b", "must match pattern .*, got 'a b'"),
        ("search.study_name", "0", "must be text .*, got 0"),
        ("output_dir", "''", "must have at least 1 character"),
        ("output_dir", '"a\\0b"', "has a character that no file can have"),
        ("output_dir", "2020-01-01", "must be text .*quotes"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_value(
    key: str, value: str, message: str | None
) -> None:
    with pytest.raises(RecipeError) as error:
        load(BASE, f"{key}={value}")
    if message is None:
        key, message = "model", "exactly one of name and from_config .* both are set"
    with pytest.raises(RecipeError, match=message):
        raise error.value
    assert key in {".".join(k.split(".")[:2]) for k in messages(error)}


def test_a_model_from_a_configuration_needs_a_known_model_type() -> None:
    text = BASE.replace("name: a/b", "from_config: {model_type: pegasu}")
    with pytest.raises(
        RecipeError, match="model type of transformers.*got 'pegasu'; did you mean 'pegasus'"
    ):
        load(text)
    with pytest.raises(RecipeError, match="from_config needs model_type"):
        load(BASE.replace("name: a/b", "from_config: {d_model: 8}"))
    with pytest.raises(RecipeError, match="neither is set"):
        load(BASE.replace("name: a/b", ""))
