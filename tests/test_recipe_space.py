"""Search spaces that cannot be sampled, or that would hold a name without an effect."""

from __future__ import annotations

import pytest
from recipe_files import BASE, load, messages

from hpo_summarize.errors import RecipeError

FLOAT = "{type: float, low: 0.1, high: 0.9}"


def refuse(space: str, extra: str = "") -> dict[str, str]:
    """The messages for a recipe with these lines in its space, all of them about the space."""
    lines = "\n".join(f"  {line}" for line in space.splitlines())
    with pytest.raises(RecipeError) as error:
        load(f"{BASE}{extra}\nspace:\n{lines}\n")
    found = messages(error)
    assert all(key.startswith("space") for key in found), found
    return found


@pytest.mark.parametrize("entry", ["3", "[]", "[1]", "text", "true"])
def test_a_parameter_that_is_no_mapping_is_refused(entry: str) -> None:
    found = refuse(f"learning_rate: {entry}")
    assert list(found) == ["space.learning_rate"]
    assert "must be a mapping of keys to values, got" in found["space.learning_rate"]


@pytest.mark.parametrize(
    ("entry", "where", "message"),
    [
        ("{}", "", "type must be float, int or categorical, got None"),
        ("{type: Float}", "", "type must be float, int or categorical, got 'Float'"),
        ("{type: [a]}", "", "type must be float, int or categorical, got ['a']"),
        ("{type: float, high: 1}", ".low", "this key is required and is not given"),
        ("{type: float, low: a, high: 1}", ".low", "must be a valid number, got 'a'"),
        ("{type: float, low: true, high: 1}", ".low", "must be a valid number, got True"),
        ("{type: float, low: .nan, high: 1}", ".low", "must be a finite number, got nan"),
        ("{type: float, low: 0.1, high: .inf}", ".high", "must be a finite number, got inf"),
        ("{type: int, low: 0.5, high: 2}", ".low", "must be a valid integer, got 0.5"),
        ("{type: float, low: 2, high: 1}", "", "low must be below high, got low 2.0 and high 1.0"),
        ("{type: float, low: 1, high: 1}", "", "low must be below high, got low 1.0 and high 1.0"),
        ("{type: float, low: 0, high: 1}", "", "must be greater than 0, got 0.0"),
        ("{type: float, low: 0, high: 1, log: true}", "", "a log range starts above 0"),
        ("{type: float, low: 1, high: 2, log: true, step: 0.5}", "", "a log range takes no step"),
        ("{type: float, low: 1, high: 2, log: 1}", ".log", "must be a valid boolean, got 1"),
        ("{type: float, low: 1, high: 2, step: 0}", ".step", "must be greater than 0, got 0"),
        ("{type: float, low: 1, high: 2, step: 0.3}", "", "a whole number of steps must lead from"),
        ("{type: float, low: 1, high: 2, step: 5}", "", "low 1.0, high 2.0 and step 5.0"),
        ("{type: float, low: 1, high: 2, setp: 1}", ".setp", "did you mean 'step'?"),
        ("{type: float, low: 1, high: 2, choices: [1]}", ".choices", "unknown key (value [1])"),
        ("{type: categorical, choices: null}", ".choices", "must be a valid list, got None"),
        ("{type: categorical, choices: []}", ".choices", "must have at least 1 item"),
        ("{type: categorical, choices: [[1]]}", ".choices.0", "or text"),
        ("{type: categorical, choices: [1, 1.0]}", ".choices", "1.0 is in [1, 1.0] twice"),
        ("{type: categorical, choices: [x, 0.1]}", "", "must be a valid number, got 'x'"),
        ("{type: categorical, choices: [0.1, -1]}", "", "must be greater than 0, got -1"),
        ("{type: float, low: 1, high: 2, when: 3}", ".when", "must be a mapping"),
    ],
)
def test_a_malformed_parameter_is_refused(entry: str, where: str, message: str) -> None:
    found = refuse(f"learning_rate: {entry}")
    assert list(found) == [f"space.learning_rate{where}"]
    assert message in found[f"space.learning_rate{where}"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("num_train_epochs", "this field is called 'num_epochs' here"),
        ("lr_scheduler_type", "this field is called 'scheduler_type' here"),
        ("r", "this field is called 'lora_r' here"),
        ("generation_num_beams", "another place: generation.num_beams"),
        ("max_length", "another place: generation.max_new_tokens"),
        ("seed", "a search over seeds finds luck"),
        ("logging_steps", "fixed for the whole run"),
        ("dataloader_num_workers", "fixed for the whole run"),
        ("output_scores", "changes nothing in the summaries"),
        ("cache_implementation", "fix it under generation"),
        ("diversity_penalty", "only with code from the Hub"),
        ("task_type", "follows from the model of the recipe"),
        ("_from_model_config", "nothing in a model"),
        ("learning_rat", "did you mean 'learning_rate'?"),
        ("학습률", "nothing in a model, its training or its decoding has this name"),
        ("1", "must be text"),
        ("num_beams", "must be a valid integer, got 0.1"),
        ("optim", "must be 'adamw_torch'"),
        ("lora_dropout", "trains without LoRA, so it cannot act; add a section lora or drop it"),
        ("temperature", "only while do_sample is True, which never holds"),
        ("length_penalty", "only while num_beams is above 1, which never"),
    ],
)
def test_a_name_that_nothing_owns_or_that_cannot_act_is_refused(name: str, message: str) -> None:
    assert message in refuse(f"{name}: {FLOAT}")[f"space.{name}"]


def test_names_that_split_the_batch_or_say_the_warm_up_twice_are_refused() -> None:
    found = refuse(
        "batch_size: {type: categorical, choices: [8, 16]}\n"
        "gradient_accumulation_steps: {type: int, low: 1, high: 4}\n"
        "per_device_train_batch_size: {type: int, low: 1, high: 4}\n"
        f"warmup_ratio: {FLOAT}\nwarmup_steps: {FLOAT}"
    )
    assert "is given beside batch_size" in found["space.gradient_accumulation_steps"]
    assert "it changes no result" in found["space.per_device_train_batch_size"]
    assert "is given beside warmup_ratio" in found["space.warmup_steps"]


@pytest.mark.parametrize(
    "name",
    [
        *("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_lookbehind"),
        *("assistant_confidence_threshold", "assistant_ensemble_weight", "target_lookbehind"),
        *("speculation_type", "max_matching_ngram_size", "prompt_lookup_num_tokens"),
        *("assistant_early_exit", "token_healing", "use_mtp"),
    ],
)
def test_what_only_a_drafting_model_reads_cannot_be_searched(name: str) -> None:
    found = refuse(f"{name}: {{type: categorical, choices: [1, 2]}}")
    assert "without an assistant model; drop it" in found[f"space.{name}"]


@pytest.mark.parametrize(
    ("space", "key", "message"),
    [
        (f"weight_decay: {FLOAT[:-1]}, when: {{nowhere: 1}}}}", "nowhere", "got 'nowhere'"),
        (f"weight_decay: {FLOAT[:-1]}, when: {{num_beam: 1}}}}", "num_beam", "mean 'num_beams'?"),
        (f"weight_decay: {FLOAT[:-1]}, when: {{num_beams: []}}}}", "num_beams", "at least 1 item"),
        (
            f"weight_decay: {FLOAT[:-1]}, when: {{num_beams: {{a: 1}}}}}}",
            "num_beams",
            "or a valid list",
        ),
        (
            f"weight_decay: {FLOAT[:-1]}, when: {{num_beams: 4}}}}",
            "num_beams",
            "num_beams is [1], got [4]",
        ),
        (f"weight_decay: {FLOAT[:-1]}, when: {{lora_r: 8}}}}", "lora_r", "trains without LoRA"),
        (f"weight_decay: {FLOAT[:-1]}, when: {{optim: sgd}}}}", "optim", "got ['sgd']"),
        (f"weight_decay: {FLOAT[:-1]}, when: {{model_type: bert5}}}}", "model_type", "'bert5'"),
        (
            "num_beams: {type: categorical, choices: [1, 2]}\n"
            f"weight_decay: {FLOAT[:-1]}, when: {{num_beams: [3, 4]}}}}",
            "num_beams",
            "never holds: num_beams is one of 1, 2, got [3, 4]",
        ),
        (
            "num_epochs: {type: int, low: 1, high: 3}\n"
            f"weight_decay: {FLOAT[:-1]}, when: {{num_epochs: 4}}}}",
            "num_epochs",
            "never holds: num_epochs is 1 to 3, got [4]",
        ),
        (
            "do_sample: {type: categorical, choices: [true, false]}\n"
            f"weight_decay: {FLOAT[:-1]}, when: {{do_sample: 1}}}}",
            "do_sample",
            "never holds: do_sample is one of True, False, got [1]",
        ),
    ],
)
def test_a_condition_that_names_nothing_or_never_holds_is_refused(
    space: str, key: str, message: str
) -> None:
    found = refuse(space)
    assert list(found) == [f"space.weight_decay.when.{key}"]
    assert message in found[f"space.weight_decay.when.{key}"]


def test_a_condition_under_which_a_parameter_has_no_effect_is_refused() -> None:
    found = refuse(
        "do_sample: {type: categorical, choices: [true, false]}\n"
        "num_beams: {type: categorical, choices: [1, 2]}\n"
        f"temperature: {FLOAT[:-1]}, when: {{do_sample: false}}}}\n"
        f"length_penalty: {FLOAT[:-1]}, when: {{num_beams: 1}}}}"
    )
    assert "no effect while do_sample is [False]" in found["space.temperature.when.do_sample"]
    assert "no effect while num_beams is [1]" in found["space.length_penalty.when.num_beams"]


@pytest.mark.parametrize(
    ("space", "ring"),
    [
        (f"weight_decay: {FLOAT[:-1]}, when: {{weight_decay: 0.5}}}}", "weight_decay"),
        (
            f"weight_decay: {FLOAT[:-1]}, when: {{learning_rate: 0.5}}}}\n"
            f"learning_rate: {FLOAT[:-1]}, when: {{weight_decay: 0.5}}}}",
            "learning_rate, weight_decay",
        ),
        (
            "do_sample: {type: categorical, choices: [true, false], when: {temperature: 0.5}}\n"
            "temperature: {type: categorical, choices: [0.5, 1.0]}",
            "do_sample, temperature",
        ),
    ],
)
def test_conditions_that_wait_for_one_another_are_refused(space: str, ring: str) -> None:
    assert f"the conditions of {ring} depend on one another" in refuse(space)["space"]


@pytest.mark.parametrize(
    ("entry", "fixed"),
    [
        ("learning_rate: {type: float, low: 1e-5, high: 1e-4}", "training: {learning_rate: 1.0}"),
        (
            "scheduler_type: {type: categorical, choices: [linear]}",
            "training: {scheduler_type: cosine}",
        ),
        ("num_epochs: {type: int, low: 1, high: 3}", "training: {num_epochs: 1.5}"),
        ("num_beams: {type: int, low: 2, high: 8, step: 2}", "generation: {num_beams: 3}"),
        ("lora_r: {type: categorical, choices: [8, 16]}", "lora: {r: 4}"),
        ("lora_alpha: {type: int, low: 8, high: 16}", "lora: {alpha: 4}"),
        ("bias: {type: categorical, choices: [all, lora_only]}", "lora: {bias: none}"),
        ("lora_bias: {type: categorical, choices: [true]}", "lora: {lora_bias: false}"),
    ],
)
def test_a_fixed_value_outside_of_its_parameter_is_refused(entry: str, fixed: str) -> None:
    found = refuse(entry, fixed)
    assert list(found) == [f"space.{entry.split(':')[0]}"]
    assert "trial 0 runs the fixed value" in next(iter(found.values()))


def test_a_default_outside_of_its_parameter_is_accepted() -> None:
    recipe = load(f"{BASE}space: {{learning_rate: {{type: float, low: 0.1, high: 1.0}}}}")
    assert list(recipe.space) == ["learning_rate"]


def test_lora_with_all_defaults_is_lora() -> None:
    recipe = load(f"{BASE}lora: {{}}\nspace: {{lora_r: {{type: int, low: 2, high: 8}}}}")
    assert list(recipe.space) == ["lora_r"]


def test_a_key_that_is_called_like_a_type_does_not_hide_the_missing_ones() -> None:
    found = refuse("learning_rate: {type: float, float: 2}")
    assert set(found) == {f"space.learning_rate.{key}" for key in ("low", "high", "float")}


def test_a_parameter_that_is_null_is_not_searched() -> None:
    searched = "space:\n  num_beams: {type: int, low: 1, high: 4}\n"
    assert load(BASE + searched).space.keys() == {"num_beams"}
    for text, override in (
        (searched, ["space.num_beams=null"]),
        ("space: {num_beams: null}\n", []),
    ):
        for debug in (False, True):
            assert load(BASE + text, *override, debug=debug).space == {}
    again = load(
        BASE + searched, "space.num_beams=null", "space.num_beams={type: int, low: 1, high: 2}"
    )
    assert again.space["num_beams"].high == 2
    with pytest.raises(
        RecipeError, match="take out of the space .value None.; did you mean 'num_b"
    ):
        load(BASE + searched, "space.num_beam=null")
    with pytest.raises(RecipeError, match="space.num_beams.low: must be a valid integer, got None"):
        load(BASE + searched, "space.num_beams.low=null")
