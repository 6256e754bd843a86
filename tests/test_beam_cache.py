"""Beam search without reordering of the cross-attention cache gives the same token ids."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from model_families import CLASSES, build_model, make_recipe
from transformers import (
    AutoModelForSeq2SeqLM,
    BartForConditionalGeneration,
    GenerationConfig,
    PreTrainedTokenizerBase,
)

from hpo_summarize import SummarizationTrainer, decoder
from hpo_summarize.decoder import SharedCrossAttentionCache, beam_cache, decoding_with
from hpo_summarize.summarizer import make_summarizer

DIALOGUES = [
    "#Person1#: Hello Mina, shall we meet at the park?",
    "#Person2#: Yes.",
    "#Person1#: Hello Jun, at the office?\n#Person2#: Yes, at five please.",
]


@pytest.fixture
def caches(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The caches that the decoder has made."""
    made: list[Any] = []

    def noted(*args: Any) -> Any:
        made.append(beam_cache(*args))
        return made[-1]

    monkeypatch.setattr("hpo_summarize.decoder.beam_cache", noted)
    return made


def generate(model: Any, tokenizer: PreTrainedTokenizerBase, ours: bool, **settings: Any) -> Any:
    given = {"max_new_tokens": 16, "use_cache": True, **settings}
    inputs = dict(tokenizer(DIALOGUES, padding=True, return_tensors="pt"))
    torch.manual_seed(0)
    with decoding_with(model.eval(), given):
        return decoder.generate(model, inputs) if ours else model.generate(**inputs)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"r": 4}])
@pytest.mark.parametrize("family", CLASSES)
def test_the_token_ids_are_those_of_transformers(
    lora: dict[str, Any] | None,
    family: str,
    folders: dict[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    caches: list[Any],
) -> None:
    model = build_model(make_recipe(folders[family], lora=lora), tokenizer, {})
    for beams, sample in itertools.product((1, 2, 4, 8), (False, True)):
        settings = {"num_beams": beams, "do_sample": sample, "length_penalty": 0.6}
        ours, theirs = (generate(model, tokenizer, who, **settings) for who in (True, False))
        assert ours.tolist() == theirs.tolist(), settings
        if beams > 1:  # The cache was filled, and not replaced by another one.
            assert caches[-1].cross_attention_cache.get_seq_length() > 0


def test_evaluations_and_predictions_decode_with_the_cache(
    make_trainer: Any,
    folders: dict[str, Path],
    tokenizer: PreTrainedTokenizerBase,
    caches: list[Any],
) -> None:
    recipe = make_recipe(folders["bart"], generation={"max_new_tokens": 12, "num_beams": 2})
    model = build_model(recipe, tokenizer, {})
    parts = {"model": model, "compute_metrics": lambda prediction: {}}
    make_trainer(SummarizationTrainer, parts, predict_with_generate=True).evaluate()
    evaluated = len(caches)
    make_summarizer(model, tokenizer, 64, recipe).summarize(DIALOGUES)
    assert len(caches) > evaluated > 0
    assert all(cache.cross_attention_cache.get_seq_length() > 0 for cache in caches)


def test_beams_do_differ_so_that_a_wrong_order_would_show(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model(make_recipe(folders["bart"]), tokenizer, {})
    right = generate(model, tokenizer, ours=True, num_beams=4)
    monkeypatch.setattr(SharedCrossAttentionCache, "reorder_cache", lambda self, index: None)
    wrong = generate(model, tokenizer, ours=True, num_beams=4)
    assert right.tolist() != wrong.tolist()


def test_only_the_self_attention_is_put_in_a_new_order(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase, caches: list[Any]
) -> None:
    model = build_model(make_recipe(folders["bart"]), tokenizer, {})
    generate(model, tokenizer, ours=True, num_beams=2)
    (cache,) = caches
    crossed = cache.cross_attention_cache.layers[0].keys
    own = cache.self_attention_cache.layers[0].keys
    order = torch.tensor([1, 0, 3, 2, 5, 4])
    cache.reorder_cache(order)
    assert cache.cross_attention_cache.layers[0].keys is crossed
    assert torch.equal(cache.self_attention_cache.layers[0].keys, own[order])


class OwnOrder(BartForConditionalGeneration):
    """Reorders its cache in its own way."""

    def _reorder_cache(self, past: Any, beam_idx: torch.Tensor) -> Any:
        past.reorder_cache(beam_idx)
        return past


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 1},
        {},
        {"num_beams": 4, "use_cache": False},
        {"num_beams": 4, "cache_implementation": "static"},
        {"num_beams": 4, "cache_implementation": "dynamic"},
    ],
)
def test_another_cache_is_left_to_transformers(
    settings: dict[str, Any], bart_config: Callable[..., Any]
) -> None:
    model = BartForConditionalGeneration(bart_config())
    assert beam_cache(model, GenerationConfig(**settings)) is None


def test_a_model_with_its_own_way_is_left_to_it(bart_config: Callable[..., Any]) -> None:
    assert beam_cache(OwnOrder(bart_config()), GenerationConfig(num_beams=4)) is None


def test_nothing_of_it_is_saved(
    folders: dict[str, Path], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = build_model(make_recipe(folders["t5"]), tokenizer, {})
    before = (model.config.to_dict(), model.generation_config.to_dict())
    ids = generate(model, tokenizer, ours=True, num_beams=4)
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    model.save_pretrained(tmp_path)
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    theirs = generate(again, tokenizer, ours=False, num_beams=4)
    assert ids.tolist() == theirs.tolist()
