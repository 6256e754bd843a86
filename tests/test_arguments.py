"""From the words of a recipe or a trial to Hugging Face's training arguments."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from transformers import Seq2SeqTrainingArguments, TrainerCallback

from hpo_summarize import OptunaOptimizer, SummarizationTrainer
from hpo_summarize.errors import LaunchError
from hpo_summarize.training.arguments import plan_batch, training_fields, with_values, within_device


@pytest.fixture
def args(tmp_path: Path) -> Seq2SeqTrainingArguments:
    return Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
    )


@pytest.mark.parametrize(
    ("name", "value", "fields"),
    [
        ("learning_rate", 3e-6, {"learning_rate": 3e-6}),
        ("num_epochs", 7, {"num_train_epochs": 7}),
        ("weight_decay", 0.05, {"weight_decay": 0.05}),
        ("scheduler_type", "cosine", {"lr_scheduler_type": "cosine"}),
        ("warmup_ratio", 0.15, {"warmup_steps": 0.15}),
        ("label_smoothing_factor", 0.1, {"label_smoothing_factor": 0.1}),
        ("num_train_epochs", 2, {"num_train_epochs": 2}),
        ("gradient_accumulation_steps", 4, {"gradient_accumulation_steps": 4}),
        ("max_steps", 12, {"max_steps": 12}),
        (
            "batch_size",
            64,
            {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 8},
        ),
    ],
)
def test_each_word_becomes_its_field_and_nothing_else_changes(
    args: Seq2SeqTrainingArguments, name: str, value: Any, fields: dict[str, Any]
) -> None:
    assert training_fields({name: value}, largest_per_device=8) == fields
    before, after = args.to_dict(), with_values(args, {name: value}).to_dict()
    assert {key: after[key] for key in fields} == fields
    untouched = before.keys() - fields.keys()
    assert {key: after[key] for key in untouched} == {key: before[key] for key in untouched}


@pytest.mark.parametrize("ratio", [0, 0.0, 0.2])
def test_the_warm_up_ratio_is_a_float_so_that_it_is_no_number_of_steps(
    args: Seq2SeqTrainingArguments, ratio: float
) -> None:
    warmed = with_values(args, {"warmup_ratio": ratio})
    assert isinstance(warmed.warmup_steps, float)
    assert warmed.get_warmup_steps(100) == 100 * ratio


def test_a_number_of_warm_up_steps_stands_beside_the_default_ratio() -> None:
    assert training_fields({"warmup_ratio": 0.0, "warmup_steps": 30}) == {"warmup_steps": 30}


def test_no_value_is_cast(args: Seq2SeqTrainingArguments) -> None:
    values = {"learning_rate": 1, "num_epochs": 3, "weight_decay": 0.0, "adam_beta1": 0.9}
    changed = with_values(args, values)
    got = [changed.learning_rate, changed.num_train_epochs, changed.weight_decay]
    assert got == [1, 3, 0.0]
    assert [type(value) for value in got] == [int, int, float]


def test_the_arguments_given_are_left_as_they_are(args: Seq2SeqTrainingArguments) -> None:
    before = copy.deepcopy(args.to_dict())
    first = with_values(args, {"learning_rate": 0.5, "batch_size": 32, "num_epochs": 9})
    second = with_values(args, {"weight_decay": 0.1})
    assert args.to_dict() == before
    assert first is not args and (first.learning_rate, second.learning_rate) == (0.5, 1e-3)


def test_the_checks_of_the_arguments_run_again(args: Seq2SeqTrainingArguments) -> None:
    with pytest.raises(ValueError, match="warmup_steps = -1, Expected value warmup_steps >= 0"):
        with_values(args, {"warmup_steps": -1})


COMBINATIONS = [
    (batch, world, largest)
    for batch, world, largest in itertools.product(
        [1, 2, 3, 7, 8, 12, 30, 32, 48, 64, 97, 128, 1000], [1, 2, 3, 4, 8], [1, 3, 8, 16, 64, None]
    )
    if batch % world == 0
]


def test_a_batch_is_always_split_into_exactly_itself() -> None:
    assert len(COMBINATIONS) > 150
    for batch, world, largest in COMBINATIONS:
        per_device, accumulation = plan_batch(batch, world, largest)
        assert per_device * accumulation * world == batch
        assert 1 <= per_device <= (largest or batch)


def test_the_largest_fitting_batch_per_device_is_taken() -> None:
    for batch, world, largest in COMBINATIONS:
        share = batch // world
        fits = [size for size in range(1, share + 1) if share % size == 0]
        best = max(size for size in fits if largest is None or size <= largest)
        assert plan_batch(batch, world, largest)[0] == best


@pytest.mark.parametrize(("batch", "world"), [(8, 3), (2, 4), (1, 2), (10, 4)])
def test_a_batch_that_processes_cannot_share_evenly_is_refused(batch: int, world: int) -> None:
    message = f"batch_size {batch} cannot be split.*{world} processes; choose multiples of {world}"
    with pytest.raises(LaunchError, match=message):
        plan_batch(batch, world, 8)


def test_the_batch_is_accumulated_up_to_what_the_arguments_put_on_a_device(
    args: Seq2SeqTrainingArguments,
) -> None:
    two = with_values(args, {"batch_size": 64}, world_size=2)
    assert (two.per_device_train_batch_size, two.gradient_accumulation_steps) == (8, 4)
    small = with_values(args, {"batch_size": 64, "per_device_train_batch_size": 2})
    assert (small.per_device_train_batch_size, small.gradient_accumulation_steps) == (2, 32)


def test_a_device_gets_no_more_than_the_arguments_ask_for_also_where_more_would_fit(
    args: Seq2SeqTrainingArguments,
) -> None:
    asked = dataclasses.replace(args, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    for largest, expected in ((4, (2, 4)), (1, (1, 8))):
        got = within_device(asked, largest, 8)
        assert (got.per_device_train_batch_size, got.gradient_accumulation_steps) == expected


class Sizes(TrainerCallback):
    """The batches of each training."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append((args.per_device_train_batch_size, args.gradient_accumulation_steps))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "expected"), [(None, [(4, 1), (16, 1)]), (8, [(4, 1), (8, 2)]), (2, [(2, 2), (2, 8)])]
)
def test_a_trial_puts_on_a_device_what_the_recipe_allows_and_not_what_its_first_one_did(
    limit: int | None,
    expected: list[tuple[int, int]],
    checkpoint: Path,
    csv_path: Path,
    tmp_path: Path,
) -> None:
    batches = {"type": "categorical", "choices": [4, 16]}
    training = {"num_epochs": 1, "batch_size": 4, "per_device_train_batch_size": limit}
    optimizer = OptunaOptimizer(
        {
            "model": {"name": str(checkpoint)},
            "data": {"train": str(csv_path), "validation_fraction": 0.25}
            | {"max_dialogue_tokens": 100, "max_summary_tokens": 30},
            "training": {key: value for key, value in training.items() if value},
            "generation": {"num_beams": 1, "max_new_tokens": 8},
            "search": {"n_trials": 2, "sampler": {"name": "brute_force"}},
            "space": {"batch_size": batches},
            "output_dir": str(tmp_path / "out"),
        }
    )
    sizes = Sizes()
    optimizer.trainer.add_callback(sizes)
    optimizer.optimize()
    assert sizes.seen == expected


def test_one_process_uses_one_of_several_gpus_and_not_a_larger_batch(make_trainer: Any) -> None:
    two = make_trainer(SummarizationTrainer).args
    two._n_gpu = 2  # As transformers counts them where no launcher says otherwise.
    assert two.train_batch_size == 16
    seen = Sizes()
    trainer = make_trainer(SummarizationTrainer, {"args": two, "callbacks": [seen]})
    assert (trainer.args.train_batch_size, trainer.args.eval_batch_size) == (8, 8)
    trainer.train()
    assert trainer.state.train_batch_size == 8
