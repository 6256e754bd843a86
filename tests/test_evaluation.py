"""Evaluation with generated text gives what transformers gives, in less time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import TrainerFactory, make_rows
from datasets import Dataset
from model_families import CLASSES
from transformers import (
    AutoModelForSeq2SeqLM,
    BartForConditionalGeneration,
    DataCollatorForSeq2Seq,
    GenerationConfig,
    PreTrainedTokenizerBase,
    Seq2SeqTrainer,
)

from hpo_summarize import SummarizationTrainer
from hpo_summarize.decoder import plan_batches, put_in_order
from hpo_summarize.generation import most_new_tokens, with_settings
from hpo_summarize.training.evaluation import draw_as_loader

# Batches.


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("largest", [1, 4, 32])
def test_every_row_is_in_one_batch_of_one_process_and_none_takes_more_memory(
    processes: int, largest: int
) -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 101).tolist()
    shares = [plan_batches(lengths, largest, 50, rank, processes) for rank in range(processes)]
    rows = [row for batches in shares for batch in batches for row in batch]
    assert sorted(rows) == list(range(101))
    sizes = [sum(map(len, batches)) for batches in shares]
    assert max(sizes) - min(sizes) <= 1
    for batch in (batch for batches in shares for batch in batches):
        longest = max(lengths[row] for row in batch)
        assert len(batch) * (longest + 50) <= largest * (max(lengths) + 50)


def test_rows_of_one_length_fill_batches_of_the_size_given() -> None:
    assert plan_batches([7] * 5, largest=2, new_tokens=9) == [[0, 1], [2, 3], [4]]


def test_more_processes_than_rows_leave_some_without_work() -> None:
    assert [plan_batches([3, 5], 8, 4, rank, 3) for rank in range(3)] == [[[1]], [[0]], []]


def test_rows_come_back_to_their_places() -> None:
    parts = [([2, 0], np.array([[1, 2, 3], [4, 5, 6]])), ([1], np.array([[7, 8]]))]
    assert put_in_order(parts, 3, padding=9).tolist() == [[4, 5, 6], [7, 8, 9], [1, 2, 3]]


# Settings.


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, (4, 0.5, 30, None)),
        ({"num_beams": None, "max_length": None}, (4, 0.5, 30, None)),
        ({"num_beams": 1}, (1, None, 30, None)),
        ({"max_length": 9}, (4, 0.5, None, 9)),
        ({"max_new_tokens": 8}, (4, 0.5, 8, None)),
        ({"generation_config": GenerationConfig(num_beams=2, max_length=9)}, (2, 0.5, None, 9)),
    ],
)
def test_settings_of_an_evaluation_take_the_place_of_the_models(
    settings: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    own = GenerationConfig(num_beams=4, length_penalty=0.5, max_new_tokens=30)
    config, others = with_settings(own, {**settings, "logits_processor": [1]})
    names = ("num_beams", "length_penalty", "max_new_tokens", "max_length")
    assert tuple(getattr(config, name) for name in names) == expected
    assert others == {"logits_processor": [1]}
    assert (own.num_beams, own.max_new_tokens) == (4, 30)


@pytest.mark.parametrize(
    "fields, expected", [({"max_new_tokens": 7}, 7), ({"max_length": 7}, 6), ({}, 20)]
)
def test_the_most_new_tokens_are_those_of_generate(
    fields: dict[str, int], expected: int, bart_config: Any
) -> None:
    config = GenerationConfig(**fields)
    assert most_new_tokens(config) == expected
    model = BartForConditionalGeneration(bart_config()).eval()
    model.generation_config.eos_token_id = None
    assert model.generate(torch.tensor([[0, 5, 2]]), generation_config=config).shape[1] == (
        expected + 1
    )


# The whole evaluation.


@pytest.fixture
def uneven(tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Rows of very different lengths, out of order."""
    rows = make_rows(13, seed=5)
    dialogues = [row["dialogue"][: 12 + 37 * index % 100] for index, row in enumerate(rows)]
    inputs = tokenizer(dialogues, max_length=60, truncation=True)
    labels = tokenizer([row["summary"] for row in rows])["input_ids"]
    columns = {key: inputs[key] for key in ("input_ids", "attention_mask")}
    return Dataset.from_dict({**columns, "labels": labels})


@pytest.fixture
def trainer_of(make_trainer: Any, folders: dict[str, Path], uneven: Dataset) -> Any:
    """Makes a trainer on a checkpoint and the uneven rows, which keeps what it evaluated."""

    def make(trainer_class: type = SummarizationTrainer, family: str = "bart", **args: Any) -> Any:
        seen: list[Any] = []

        def compute_metrics(prediction: Any) -> dict[str, float]:
            seen.append(prediction)
            return {"rows": float(len(prediction.predictions))}

        model = AutoModelForSeq2SeqLM.from_pretrained(folders[family])
        model.generation_config.max_new_tokens = 12
        model.generation_config.max_length = None
        options = {"model": model, "eval_dataset": uneven, "compute_metrics": compute_metrics}
        fields = {"predict_with_generate": True, "per_device_eval_batch_size": 4, **args}
        trainer = make_trainer(trainer_class, options, **fields)
        model.generation_config.use_cache = True
        trainer.seen = seen
        return trainer

    return make


def stripped(ids: np.ndarray, pad: int) -> list[list[int]]:
    return [[token for token in row if token not in (-100, pad)] for row in ids.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("beams", [1, 4])
def test_the_predictions_are_those_of_transformers_in_the_order_of_the_rows(
    family: str, beams: int, trainer_of: Any, uneven: Dataset, tokenizer: Any
) -> None:
    ours, stock = trainer_of(family=family), trainer_of(Seq2SeqTrainer, family)
    found, expected = (trainer.evaluate(num_beams=beams) for trainer in (ours, stock))
    pad = tokenizer.pad_token_id
    predictions = [stripped(trainer.seen[0].predictions, pad) for trainer in (ours, stock)]
    assert predictions[0] == predictions[1]
    assert len(set(map(tuple, predictions[0]))) > 1
    assert ours.seen[0].predictions.min() >= 0
    assert stripped(ours.seen[0].label_ids, pad) == [
        [token for token in row if token != pad] for row in uneven["labels"]
    ]
    assert found.keys() == expected.keys()
    assert found["eval_rows"] == 13
    ours.predict(uneven, num_beams=beams)
    assert np.array_equal(ours.seen[1].predictions, ours.seen[0].predictions)


def test_rows_without_labels_are_predicted(trainer_of: Any, uneven: Dataset) -> None:
    trainer = trainer_of()
    with_labels = trainer.predict(uneven)
    without = trainer.predict(uneven.remove_columns("labels"))
    assert np.array_equal(with_labels.predictions, without.predictions)
    assert without.label_ids is None
    assert "test_rows" not in without.metrics
    assert without.metrics["test_samples_per_second"] > 0


def test_a_cheap_evaluation_of_a_part_leaves_the_decoding_as_it_was(
    trainer_of: Any, uneven: Dataset
) -> None:
    trainer = trainer_of()
    config = trainer.model.generation_config
    config.num_beams, config.length_penalty = 4, 0.5
    part = uneven.select([3, 8, 1])
    metrics = trainer.evaluate(part, metric_key_prefix="epoch", num_beams=1, do_sample=False)
    assert metrics["epoch_rows"] == 3
    assert trainer.model.generation_config is config
    assert (config.num_beams, config.length_penalty, config.max_new_tokens) == (4, 0.5, 12)
    trainer.evaluate(num_beams=1)
    pad = trainer.processing_class.pad_token_id
    whole = stripped(trainer.seen[1].predictions, pad)
    assert stripped(trainer.seen[0].predictions, pad) == [whole[3], whole[8], whole[1]]


def test_a_failed_evaluation_leaves_the_decoding_as_it_was(
    trainer_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of()
    config = trainer.model.generation_config

    def break_down(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(trainer.model, "generate", break_down)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        trainer.evaluate(num_beams=2)
    assert trainer.model.generation_config is config


def test_sampled_texts_are_the_same_for_the_same_seed(trainer_of: Any) -> None:
    trainer = trainer_of()
    for seed in (1, 1, 2):
        trainer.args.seed = seed
        torch.manual_seed(5)
        draw_as_loader()  # The one number that the stock trainer's loader draws.
        expected = torch.rand(1)
        torch.manual_seed(5)
        trainer.evaluate(do_sample=True, num_beams=1)
        assert torch.rand(1) == expected, "the training's numbers are its own"
    first, again, other = (prediction.predictions.tolist() for prediction in trainer.seen)
    assert first == again
    assert first != other


def test_the_collators_decoder_inputs_do_not_give_the_solution_away(trainer_of: Any) -> None:
    trainer = trainer_of()
    trainer.evaluate()
    trainer.data_collator = DataCollatorForSeq2Seq(trainer.processing_class, trainer.model)
    trainer.evaluate()
    assert np.array_equal(trainer.seen[0].predictions, trainer.seen[1].predictions)


def test_inputs_are_given_to_metrics_that_ask_for_them(trainer_of: Any, uneven: Dataset) -> None:
    trainer = trainer_of(include_for_metrics=["inputs"])
    trainer.evaluate()
    pad = trainer.processing_class.pad_token_id
    assert stripped(trainer.seen[0].inputs, pad) == list(uneven["input_ids"])


# The loss.


def forwards_with_labels(trainer: Any) -> int:
    """Evaluates once and counts the rows that the model read together with their solution."""
    rows = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if kwargs["input_ids"].shape[1] > 1:  # Generation goes one token at a time.
            rows.append(len(kwargs["input_ids"]))

    handle = trainer.model.get_decoder().register_forward_pre_hook(note, with_kwargs=True)
    trainer.metrics = trainer.evaluate()
    handle.remove()
    return sum(rows)


@pytest.mark.parametrize(
    "args",
    [
        {},
        {"metric_for_best_model": "loss"},
        {"metric_for_best_model": "eval_loss"},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
    ],
)
def test_the_loss_is_measured_where_it_may_be_read(
    args: dict[str, Any], trainer_of: Any, uneven: Dataset
) -> None:
    trainer = trainer_of(**args)
    assert forwards_with_labels(trainer) == 13
    losses = []
    for start in range(0, 13, 4):  # Of each batch the mean over its tokens, weighted by its rows.
        rows = [uneven[index] for index in range(start, min(start + 4, 13))]
        with torch.no_grad():
            loss = trainer.model(**trainer.data_collator(rows)).loss
        losses += [loss.item()] * len(rows)
    assert trainer.metrics["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_the_loss_is_not_measured_where_another_metric_decides(trainer_of: Any) -> None:
    trainer = trainer_of(metric_for_best_model="rows")
    assert forwards_with_labels(trainer) == 0
    assert "eval_loss" not in trainer.metrics


# Out of memory.


class Narrow(BartForConditionalGeneration):
    """Has memory for three of the longest rows and what is generated for them."""

    sizes: list[int] = []
    longest = 0

    def generate(self, input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        rows, length = input_ids.shape
        self.sizes.append(rows)
        if rows * (length + 12) > 3 * (self.longest + 12):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().generate(input_ids, **kwargs)


def test_a_search_out_of_memory_in_its_evaluation_takes_smaller_batches(
    make_trainer: Any, bart_config: Any, uneven: Dataset
) -> None:
    Narrow.sizes.clear()
    Narrow.longest = max(len(row) for row in uneven["input_ids"])
    options = {
        "model_init": lambda: Narrow(bart_config()),
        "model": None,
        "eval_dataset": uneven,
        "compute_metrics": lambda prediction: {"rows": float(len(prediction.predictions))},
    }
    trainer = make_trainer(
        SummarizationTrainer, options, predict_with_generate=True, generation_max_length=13
    )
    best = trainer.hyperparameter_search(
        lambda trial: {}, n_trials=1, backend="optuna", direction="maximize"
    )
    assert best.objective == 13.0
    # Of 8 rows and of 4 of the greatest length the first batch is too large; of 2 none is.
    assert Narrow.sizes[0] > Narrow.sizes[1] > Narrow.sizes[2]
    assert sum(Narrow.sizes[2:]) == 13


# What goes the parent's way.


class Stepping(SummarizationTrainer):
    """Has a step of its own."""

    steps = 0

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        self.steps += 1
        return super().prediction_step(*args, **kwargs)


def test_a_step_of_a_subclass_is_called_for_every_batch(trainer_of: Any) -> None:
    trainer = trainer_of(Stepping)
    assert trainer.evaluate()["eval_rows"] == 13
    assert trainer.steps == 4


def test_iterable_rows_are_evaluated(trainer_of: Any, uneven: Dataset) -> None:
    trainer = trainer_of()
    trainer.evaluate()
    trainer.evaluate(uneven.to_iterable_dataset().with_format("torch"))
    pad = trainer.processing_class.pad_token_id
    first, second = (stripped(seen.predictions, pad) for seen in trainer.seen)
    assert first == second


class MakesLabels(DataCollatorForSeq2Seq):
    """Takes the start of each dialogue for its summary."""

    def __call__(self, features: Any, return_tensors: Any = None) -> Any:
        rows = [{**feature, "labels": feature["input_ids"][:5]} for feature in features]
        return super().__call__(rows, return_tensors)


def test_labels_that_only_the_collator_makes_reach_the_metrics(
    trainer_of: Any, uneven: Dataset
) -> None:
    trainer = trainer_of()
    trainer.data_collator = MakesLabels(trainer.processing_class)
    assert trainer.evaluate(uneven.remove_columns("labels"))["eval_rows"] == 13
    assert trainer.seen[0].label_ids.shape[0] == 13


def test_losses_are_given_to_metrics_that_ask_for_them(trainer_of: Any) -> None:
    trainer = trainer_of(include_for_metrics=["loss"])
    trainer.evaluate()
    assert len(trainer.seen[0].losses) == 13


def test_logits_are_preprocessed_by_the_parent(trainer_of: Any) -> None:
    trainer = trainer_of()
    trainer.preprocess_logits_for_metrics = lambda logits, labels: logits[:, :1]
    trainer.evaluate()
    assert trainer.seen[0].predictions.shape == (13, 1)


def test_metrics_by_batch_are_computed(trainer_of: Any) -> None:
    trainer = trainer_of()
    trainer.args.batch_eval_metrics = True
    batches: list[int] = []

    def compute_metrics(prediction: Any, compute_result: bool) -> dict[str, float]:
        batches.append(len(prediction.predictions))
        return {"rows": float(sum(batches))}

    trainer.compute_metrics = compute_metrics
    assert trainer.evaluate()["eval_rows"] == 13
    assert batches == [4, 4, 4, 1]


def test_several_sets_are_evaluated_under_their_names(trainer_of: Any, uneven: Dataset) -> None:
    trainer = trainer_of()
    metrics = trainer.evaluate({"a": uneven, "b": uneven.select(range(2))})
    assert (metrics["eval_a_rows"], metrics["eval_b_rows"]) == (13, 2)


def test_rows_that_a_loader_would_drop_are_predicted(trainer_of: Any) -> None:
    assert trainer_of(dataloader_drop_last=True).evaluate()["eval_rows"] == 13


def test_loaders_that_persist_leave_no_processes_behind(make_trainer: TrainerFactory) -> None:
    options = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    trainer = make_trainer(SummarizationTrainer, **options)
    before = len(psutil.Process().children())
    for count in (4, 6, 4):
        trainer.eval_dataset = trainer.train_dataset.select(range(count))
        assert trainer.evaluate()["eval_loss"] > 0
    assert len(psutil.Process().children()) - before <= 1
