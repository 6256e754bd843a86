"""The decoding that a trial really has: of the checkpoint, the recipe, the data and the space."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from model_families import build_model, make_recipe
from transformers import BartForConditionalGeneration, GenerationConfig, PreTrainedTokenizerBase

from hpo_summarize import OptunaOptimizer, SummarizationTrainer, console
from hpo_summarize.components import Experiment
from hpo_summarize.errors import RecipeError
from hpo_summarize.generation import set_decoding, with_settings
from hpo_summarize.search_space import TrialSpec

IDS = {"pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
# As facebook/bart-large-cnn, whose summaries are of newspaper articles.
NEWS = {"min_length": 56, "max_length": 142, "num_beams": 4, "length_penalty": 2.0}
NOT_HERE = {"num_return_sequences": 2, "num_beam_groups": 2, "return_dict_in_generate": True}


@pytest.fixture
def news(checkpoint: Path, tmp_path: Path) -> Any:
    """Copies the checkpoint with decoding of its own."""

    def make(**fields: Any) -> Path:
        folder = tmp_path / "news"
        BartForConditionalGeneration.from_pretrained(checkpoint).save_pretrained(folder)
        GenerationConfig(**{**IDS, **NEWS, **fields}).save_pretrained(folder)
        return folder

    return make


@pytest.fixture
def content(csv_path: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Any:
    """Makes a recipe on the texts of the tests, whose summaries have some 17 tokens."""

    def make(folder: Path, **sections: Any) -> dict[str, Any]:
        tokenizer.save_pretrained(folder)
        return {
            "model": {"name": str(folder)},
            "data": {"train": str(csv_path), "max_dialogue_tokens": 60, "max_summary_tokens": 40},
            "training": {"num_epochs": 1},
            "search": {"n_trials": 1},
            "space": {"num_beams": {"type": "categorical", "choices": [1, 2]}},
            "output_dir": str(tmp_path / "out"),
            **sections,
        }

    return make


@pytest.mark.slow
def test_the_least_length_of_a_checkpoint_goes_with_its_most_length_in_search_and_predictions(
    news: Any, content: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = OptunaOptimizer(content(news(**NOT_HERE)))
    optimizer.prepare()
    console.print_search_plan(optimizer)
    printed = capsys.readouterr().out
    assert "min_length 56" in printed and "num_return_sequences 2" in printed
    optimizer.optimize()
    (weights,) = (optimizer.output_dir / "trials").glob("*/trial-0/checkpoint-*")
    built = optimizer.experiment.build_model(TrialSpec.of({"num_beams": 2}))
    for config in (GenerationConfig.from_pretrained(weights), built.generation_config):
        assert config.max_new_tokens == optimizer.experiment.max_new_tokens < 56
        assert not any(getattr(config, name) for name in ("min_length", "max_length", *NOT_HERE))
        assert config.length_penalty in (None, 2.0)


@pytest.mark.parametrize("name", ["min_length", "min_new_tokens"])
@pytest.mark.parametrize("section", ["generation", "space"])
def test_a_least_length_of_the_recipe_above_the_decided_length_is_refused(
    section: str, name: str, checkpoint_copy: Path, content: Any
) -> None:
    value = {"type": "int", "low": 2, "high": 56} if section == "space" else 56
    recipe = content(checkpoint_copy, **{section: {name: value}})
    with pytest.raises(
        RecipeError, match=rf"{section}.{name}: must be at most \d+ .*decide, got 56"
    ):
        OptunaOptimizer(recipe).prepare()
    recipe["generation"] = {**recipe.get("generation", {}), "max_new_tokens": 60}
    assert Experiment(OptunaOptimizer(recipe).recipe).max_new_tokens == 60


def test_a_least_length_of_the_recipe_that_fits_takes_the_place_of_the_checkpoints(
    news: Any, tokenizer: PreTrainedTokenizerBase
) -> None:
    recipe = make_recipe(news(), generation={"max_new_tokens": 60, "min_length": 58})
    assert build_model(recipe, tokenizer, {}).generation_config.min_length == 58
    space = {"max_new_tokens": {"type": "int", "low": 30, "high": 60}}
    recipe = make_recipe(news(), generation={"min_length": 20}, space=space)
    config = build_model(recipe, tokenizer, {}).generation_config  # 12 is fixed, and never used.
    set_decoding(config, {"max_new_tokens": 30})
    assert (config.min_length, config.max_new_tokens) == (20, 30)


@pytest.mark.parametrize("own", [{"min_length": 56}, {"min_new_tokens": 56}])
@pytest.mark.parametrize("given", [{"max_new_tokens": 14}, {"max_length": 15}])
def test_a_least_length_above_the_most_goes_with_a_warning_or_is_refused_where_it_is_given(
    given: dict[str, int], own: dict[str, int]
) -> None:
    (name,) = own
    config = GenerationConfig(max_new_tokens=100, **own)
    with pytest.warns(UserWarning, match=f"{name} is 56, and at most 14 new tokens .* dropped"):
        settled = with_settings(config, given)[0]
    assert (getattr(settled, name), getattr(config, name)) == (None, 56)
    with pytest.raises(ValueError, match=f"{name} is 56, .*lower {name}, or raise max_new_tokens"):
        with_settings(config, {**given, **own})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert getattr(with_settings(config, {"max_new_tokens": 56})[0], name) == 56


def test_a_search_from_python_decodes_short_texts_with_a_checkpoint_of_long_ones(
    make_trainer: Any, bart_config: Any
) -> None:
    def model_init() -> BartForConditionalGeneration:
        model = BartForConditionalGeneration(bart_config())
        model.generation_config.update(**NEWS)
        return model

    trainer = make_trainer(
        SummarizationTrainer, {"model_init": model_init}, predict_with_generate=True
    )
    with pytest.warns(UserWarning, match="min_length is 56"):
        trainer.hyperparameter_search(
            lambda trial: {"max_new_tokens": 9}, n_trials=1, backend="optuna"
        )
    assert trainer.model.generation_config.min_length is None
