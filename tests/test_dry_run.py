"""What is tried before the first trial, and how often."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import make_rows
from datasets import Dataset
from test_model_classes import tiny
from transformers import GenerationMixin, PreTrainedTokenizerBase

from hpo_summarize import OptunaOptimizer
from hpo_summarize.errors import RecipeError

LORA = {"r": 4, "alpha": 8}
DECODING = {
    "do_sample": {"type": "categorical", "choices": [False, True]},
    "temperature": {"type": "float", "low": 0.1, "high": 1.0},
    "num_beams": {"type": "categorical", "choices": [1, 2, 4]},
    "length_penalty": {"type": "float", "low": 0.5, "high": 2.0},
}
Make = Callable[..., OptunaOptimizer]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a search over a space, on eight rows."""

    def optimizer(model: Path, space: dict[str, Any], lora: Any = None) -> OptunaOptimizer:
        recipe = {
            "model": {"name": str(model)},
            "lora": lora,
            "data": {"max_dialogue_tokens": 40, "max_summary_tokens": 30},
            "generation": {"num_beams": 2, "max_new_tokens": 6},
            "search": {"pruner": None},
            "space": space,
            "output_dir": str(tmp_path / "out"),
        }
        return OptunaOptimizer(recipe, *(Dataset.from_list(make_rows(n, n)) for n in (8, 4)))

    return optimizer


def test_tokens_are_generated_once_for_each_kind_of_decoding(
    make: Make, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds, generate = [], GenerationMixin.generate

    def count(self: Any, *args: Any, generation_config: Any, **kwargs: Any) -> Any:
        assert generation_config.max_new_tokens == 2
        kinds.append((generation_config.do_sample or False, generation_config.num_beams > 1))
        return generate(self, *args, generation_config=generation_config, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", count)
    make(checkpoint, DECODING).prepare()
    assert sorted(kinds) == [(False, False), (False, True), (True, True)]


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("forced_bos_token_id", [5, 99999], "99999 is refused .*out of bounds"),
        ("top_h", [0.5, 3.0], "3.0 is refused .*top_h"),
        (
            "target_modules",
            ["all-linear", "nothing"],
            "'nothing' is refused: .*modules nothing not found",
        ),
    ],
)
def test_every_value_that_only_a_run_refuses_is_found(
    name: str, choices: list[Any], message: str, make: Make, checkpoint: Path
) -> None:
    space = {name: {"type": "categorical", "choices": choices}}
    space |= {"do_sample": DECODING["do_sample"]} if name == "top_h" else {}
    with pytest.raises(RecipeError, match=f"space.{name}: {message}"):
        make(checkpoint, space, LORA).prepare()


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_depth_with_which_a_checkpoint_cannot_be_loaded_is_refused(
    lora: Any, make: Make, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Which layers of NLLB-MoE have experts is decided by their number."""
    tiny("NllbMoe", tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    space = {"encoder_layers": {"type": "int", "low": 2, "high": 3}}
    with pytest.raises(RecipeError, match="space.encoder_layers: 3 is refused: "):
        make(tmp_path / "model", space, lora).prepare()
