"""Settings that would do nothing, or break the search: refused with what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from recipe_files import BASE, load, messages

from hpo_summarize.config.loader import parse_recipe
from hpo_summarize.config.parameters import default_values, parameters
from hpo_summarize.config.unusable import UNUSABLE
from hpo_summarize.errors import RecipeError
from hpo_summarize.search_space import build_space

LORA = BASE + "lora: {r: 4}\ngeneration: {num_beams: 1, do_sample: false, max_new_tokens: 100}\n"
IDLE = [
    ("training.max_steps=5", "num_epochs"),
    ("training.dataloader_drop_last=true", "all rows"),
    ("training.sortish_sampler=true", "group_by_length"),
    ("training.batch_eval_metrics=true", "decided by the search"),
    ("training.prediction_loss_only=true", "decided by the search"),
    ("training.load_best_model_at_end=true", "decided by the search"),
    ("training.metric_for_best_model=loss", "search.objective"),
    ("training.greater_is_better=false", "search.direction"),
    ("training.push_to_hub=true", "train.push_to_hub"),
    ("training.hub_model_id=me/x", "train.push_to_hub"),
    ("training.deepspeed=x.json", "search.parallel: ddp"),
    ("training.fsdp=full_shard", "search.parallel: ddp"),
    ("training.eval_on_start=true", "decided by the search"),
    ("training.eval_strategy=no", "must be 'epoch', got 'no'"),
    ("training.eval_strategy=steps", "must be 'epoch', got 'steps'"),
    ("training.save_strategy=best", "must be 'epoch' or 'no', got 'best'"),
    ("training.save_only_model=true", "decided by the search"),
    ("training.accelerator_config={split_batches: true}", "batch_size alone"),
    ("training.resume_from_checkpoint=x", "decided by the search"),
    ("training.use_cache=true", "key-value cache"),
    (
        "training.activation_checkpointing_kwargs={a: 1}",
        "only while activation_checkpointing is True",
    ),
    ("training.save_total_limit=0", "greater than or equal to 1, got 0"),
    ("data.seed=-1", "greater than or equal to 0, got -1"),
    ("generation.max_time=1.5", "speed of the machine"),
    ("generation.output_scores=true", "changes nothing in the summaries"),
    ("generation.num_assistant_tokens=3", "in batches"),
    ("generation.max_cache_len=100", "changes nothing in the summaries"),
    ("generation.cache_config={nbits: 4}", "changes nothing in the summaries"),
    ("generation.use_cache=true", "always uses the key-value cache"),
    ("generation.use_cache=false", "always uses the key-value cache"),
    ("generation.temperature=0.5", "only while do_sample is True"),
    ("generation.length_penalty=2.0", "only while num_beams is above 1"),
    ("generation.min_new_tokens=101", "must be at most 100 where max_new_tokens is 100, got 101"),
    ("lora.inference_mode=true", "made for training"),
    ("lora.task_type=CAUSAL_LM", "made for training"),
    ("lora.megatron_core=x.core", "follows from the model"),
    ("lora.megatron_config={a: 1}", "follows from the model"),
    ("lora.use_qalora=true", "follows from the model"),
    ("lora.qalora_group_size=8", "follows from the model"),
    ("lora.fan_in_fan_out=true", "follows from the model"),
    ("lora.loftq_config={loftq_bits: 4}", "only while init_lora_weights is loftq"),
]


@pytest.mark.parametrize(("setting", "advice"), IDLE)
def test_a_fixed_setting_that_does_nothing_is_refused_with_what_to_do(
    setting: str, advice: str
) -> None:
    with pytest.raises(RecipeError) as error:
        load(LORA, setting)
    found = messages(error)
    assert list(found) == [setting.partition("=")[0]]
    assert advice in next(iter(found.values()))


@pytest.mark.parametrize("section", ["model", "data"])
def test_a_revision_beside_a_folder_is_refused(section: str, tmp_path: Path) -> None:
    settings = [f"{section}.name={tmp_path}", f"{section}.revision=main"]
    with pytest.raises(RecipeError, match="1 error found") as error:
        load(BASE, *settings)
    assert "repository of the Hub" in messages(error)[f"{section}.revision"]
    assert load(BASE, f"{section}.name=someone/something", settings[1])


def test_a_revision_of_a_model_from_a_configuration_is_refused() -> None:
    settings = ["model={from_config: {model_type: bart}, revision: main}"]
    with pytest.raises(RecipeError, match="model.revision: acts on a repository of the Hub"):
        load(BASE, *settings)


def test_every_refused_field_exists_and_may_have_its_default() -> None:
    assert UNUSABLE.keys() <= parameters().keys()
    content: Any = {"model": {"name": "a/b"}, "data": {"train": "t.csv"}, "output_dir": "out"}
    for name in UNUSABLE.keys() & default_values().keys():
        section = content.setdefault(parameters()[name].owner, {})
        section[name] = default_values()[name]
    assert len(content["training"]) > 30
    recipe = parse_recipe(content)
    assert recipe.training.settings() == content["training"]


@pytest.mark.parametrize("name", ["max_steps", "sortish_sampler", "optim_args"])
def test_what_does_nothing_cannot_be_searched(name: str) -> None:
    with pytest.raises(RecipeError, match=f"space.{name}: "):
        load(BASE, f"space.{name}={{type: categorical, choices: [1]}}")


@pytest.mark.parametrize("name", ["megatron_core", "use_qalora", "fan_in_fan_out"])
def test_what_no_adapter_here_reads_cannot_be_searched(name: str) -> None:
    with pytest.raises(RecipeError, match=f"space.{name}: .*; drop it"):
        load(LORA, f"space.{name}={{type: categorical, choices: [true, false]}}")


def test_adapters_may_begin_with_any_number_of_iterations_of_pissa() -> None:
    assert load(LORA, "lora.init_lora_weights=pissa_niter_4")
    load(LORA, "space.init_lora_weights={type: categorical, choices: [pissa_niter_4, pissa]}")


def test_a_setting_of_loftq_is_taken_where_loftq_may_begin_the_adapters() -> None:
    config = "lora.loftq_config={loftq_bits: 4}"
    load(LORA, config, "lora.init_lora_weights=loftq")
    load(LORA, config, "space.init_lora_weights={type: categorical, choices: [true, loftq]}")


@pytest.mark.parametrize("schedule", ["constant", "reduce_lr_on_plateau", "greedy"])
@pytest.mark.parametrize("warmup", ["warmup_ratio=0.1", "warmup_steps=5"])
def test_a_warm_up_under_a_schedule_without_one_is_refused(schedule: str, warmup: str) -> None:
    mode = "training.lr_scheduler_kwargs={mode: max}"
    settings = [f"training.{warmup}", f"training.scheduler_type={schedule}", mode]
    with pytest.raises(RecipeError, match="only while scheduler_type has a warm-up"):
        load(BASE, *settings)
    name = warmup.partition("=")[0]
    searched = f"space.{name}={{type: int, low: 0, high: 5}}"
    if name == "warmup_ratio":
        searched = searched.replace("int", "float").replace("5", "0.2")
    with pytest.raises(
        RecipeError, match=f"space.{name}: it acts only while scheduler_type has a warm"
    ):
        load(BASE, searched, *settings[1:])


def test_a_warm_up_is_sampled_only_where_the_schedule_has_one() -> None:
    import optuna

    recipe = load(
        BASE,
        "space.warmup_ratio={type: float, low: 0.1, high: 0.2}",
        "space.scheduler_type={type: categorical, choices: [linear, constant]}",
    )
    space = build_space(recipe, {"model_type": "bart"})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    samples = [space.sample(study.ask()) for _ in range(20)]
    schedules = {values["scheduler_type"] for values in samples}
    assert schedules == {"linear", "constant"}
    for values in samples:
        assert ("warmup_ratio" in values) == (values["scheduler_type"] == "linear")
    assert "only while scheduler_type has a warm-up" in "\n".join(space.explain())


@pytest.mark.parametrize("schedule", ["reduce_lr_on_plateau", "greedy"])
def test_a_schedule_that_follows_rouge_must_know_that_higher_is_better(schedule: str) -> None:
    settings = [f"training.scheduler_type={schedule}"]
    for kwargs in ({}, {"mode": "min"}):
        with pytest.raises(RecipeError, match="takes it for a loss .*mode=max"):
            load(BASE, *settings, f"training.lr_scheduler_kwargs={kwargs}")
    load(BASE, *settings, "training.lr_scheduler_kwargs={mode: max}")
    load(BASE, *settings, "search.direction=minimize", "training.lr_scheduler_kwargs={mode: min}")


@pytest.mark.parametrize("schedule", ["constant", "constant_with_warmup"])
def test_options_of_a_schedule_that_has_none_are_refused(schedule: str) -> None:
    settings = [f"training.scheduler_type={schedule}", "training.lr_scheduler_kwargs={a: 1}"]
    with pytest.raises(
        RecipeError, match="lr_scheduler_kwargs: it acts only while scheduler_type has opt"
    ):
        load(BASE, *settings)


def variants_of(*settings: str) -> list[tuple[str, Any, dict[str, Any]]]:
    return list(build_space(load(BASE, *settings), {"model_type": "bart"}).variants())


def test_the_variants_hold_every_choice_and_both_ends_with_what_lets_them_act() -> None:
    found = variants_of(
        "space.do_sample={type: categorical, choices: [false, true]}",
        "space.temperature={type: float, low: 0.1, high: 0.9}",
        "space.num_beams={type: int, low: 1, high: 4}",
    )
    changed = [(name, value) for name, value, _ in found]
    assert sorted(changed, key=str) == sorted(
        [("do_sample", False), ("do_sample", True), ("temperature", 0.1), ("temperature", 0.9)]
        + [("num_beams", 1), ("num_beams", 4)],
        key=str,
    )
    for name, value, values in found:
        assert values[name] == value
        assert ("temperature" in values) == values["do_sample"]
        if name == "temperature":
            assert values["do_sample"] is True
