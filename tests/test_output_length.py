"""How long summaries may be where the recipe does not say it: as long as the training ones."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from model_families import POSITIONS
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize import OptunaOptimizer, components, console
from hpo_summarize.config.schema import DataSection
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.errors import StudyError
from hpo_summarize.models.tokenization import output_length, summary_tokens
from hpo_summarize.search_space import TrialSpec


def rows(lengths: list[int]) -> Dialogues:
    texts = [" ".join(["Mina"] * length) for length in lengths]
    return Dialogues(["Hello"] * len(lengths), [[text] for text in texts], list(map(str, lengths)))


@pytest.mark.parametrize("outliers, expected", [(1, 10), (3, 40)])
def test_the_length_is_that_of_all_but_a_few_summaries_and_a_tenth_more(
    outliers: int, expected: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    data, section = rows([10] * 400 + [40] * outliers), DataSection(train="x")
    n_tokens = len(summary_tokens(rows([expected]), tokenizer)[0])
    assert output_length(data, tokenizer, section) == math.ceil(1.1 * n_tokens)


def test_summaries_count_as_they_are_cut_in_training(tokenizer: PreTrainedTokenizerBase) -> None:
    section = DataSection(train="x", max_summary_tokens=20)
    assert output_length(rows([300] * 5), tokenizer, section) == 22


def make(checkpoint: Path, csv_path: Path, out: Path, **sections: Any) -> OptunaOptimizer:
    content: dict[str, Any] = {
        "model": {"name": str(checkpoint)},
        "data": {
            **{"train": str(csv_path), "validation_fraction": 0.25},
            **{"max_dialogue_tokens": 60, "max_summary_tokens": 30},
        },
        "training": {"num_epochs": 1},
        "search": {"n_trials": 2},
        "space": {"learning_rate": {"type": "float", "low": 1e-4, "high": 1e-2}},
        "output_dir": str(out),
        **sections,
    }
    return OptunaOptimizer(content)


@pytest.mark.slow
def test_the_length_is_set_once_a_study_and_recorded_everywhere(
    checkpoint: Path,
    csv_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenised: list[int] = []

    def count(data: Dialogues, *args: Any) -> Dataset:
        tokenised.append(len(data))
        return tokenize(data, *args)

    tokenize = components.tokenize
    monkeypatch.setattr(components, "tokenize", count)
    optimizer = make(checkpoint, csv_path, tmp_path)
    study = optimizer.optimize()
    train, validation = optimizer.experiment.splits
    expected = output_length(train, optimizer.experiment.tokenizer, optimizer.recipe.data)
    assert 5 < expected < 34
    # For all trials once.
    assert tokenised == [len(train), len(validation)]
    assert study is not None and study.user_attrs["max_new_tokens"] == expected
    assert json.loads((tmp_path / "best_params.json").read_text())["max_new_tokens"] == expected
    assert f"max_new_tokens: {expected}\n" in (tmp_path / "recipe.yaml").read_text()
    weights = next(tmp_path.glob("trials/*/trial-*/checkpoint-*"))
    assert GenerationConfig.from_pretrained(weights).max_new_tokens == expected
    console.print_search_plan(optimizer)
    assert f"summaries of at most {expected} tokens" in capsys.readouterr().out

    def refuse(*args: Any) -> int:
        raise AssertionError("a study that goes on keeps what it began with")

    monkeypatch.setattr(components, "output_length", refuse)
    again = make(checkpoint, csv_path, tmp_path)
    again.prepare()
    assert again.experiment.max_new_tokens == expected
    same = make(checkpoint, csv_path, tmp_path, generation={"max_new_tokens": expected})
    same.prepare()
    other = make(checkpoint, csv_path, tmp_path, generation={"max_new_tokens": expected + 1})
    with pytest.raises(StudyError, match=f"was {expected}, now {expected + 1}"):
        other.prepare()


def test_the_recipe_has_its_way_and_the_models_own_limit_gives_way(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    optimizer = make(checkpoint, csv_path, tmp_path, generation={"max_new_tokens": 7})
    model = optimizer.experiment.build_model(TrialSpec.of({}))
    config = unwrap_peft_model(model).generation_config
    assert (config.max_new_tokens, config.max_length) == (7, None)


def test_the_positions_of_the_model_are_the_most(
    folders: dict[str, Path], csv_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "output_length", lambda *args: POSITIONS + 9)
    assert make(folders["bart"], csv_path, tmp_path).experiment.max_new_tokens == POSITIONS
    assert make(folders["t5"], csv_path, tmp_path).experiment.max_new_tokens == POSITIONS + 9
