"""mBART: labels, the start of an output, and the language of all texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_rows
from datasets import Dataset
from model_families import build_model, make_recipe, save_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    DataCollatorForSeq2Seq,
    GenerationConfig,
    MBart50Tokenizer,
    MBartTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.mbart import tokenization_mbart
from transformers.models.mbart50 import tokenization_mbart50

from hpo_summarize.config.schema import DataSection
from hpo_summarize.errors import ModelError
from hpo_summarize.models.tokenization import from_dataset, tokenize
from hpo_summarize.models.tokenizer import load_tokenizer

LANGUAGES = {
    MBartTokenizer: tokenization_mbart.FAIRSEQ_LANGUAGE_CODES,
    MBart50Tokenizer: tokenization_mbart50.FAIRSEQ_LANGUAGE_CODES,
}
ROWS = make_rows(8, seed=5)
SECTION = DataSection(train="unused", max_dialogue_tokens=60, max_summary_tokens=30)


def train_mbart_tokenizer(kind: type, language: str) -> PreTrainedTokenizerBase:
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    core.train_from_iterator([text for row in ROWS for text in row.values()], trainer)
    pieces = [tuple(piece) for piece in json.loads(core.to_str())["model"]["vocab"]]
    pieces += [(code, 0.0) for code in LANGUAGES[kind]] + [("<mask>", 0.0)]
    return kind(vocab=pieces, src_lang=language, tgt_lang=language)


@pytest.fixture(scope="module", params=LANGUAGES, ids=lambda kind: kind.__name__)
def mbart(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = train_mbart_tokenizer(request.param, "en_XX")
    return save_checkpoint(tmp_path_factory.mktemp("mbart"), "mbart", tokenizer)


@pytest.fixture
def load(mbart: Path) -> Callable[..., Any]:
    """The model, the tokenizer and the tokens of a recipe with keys of `model` and others."""

    def load(keys: dict[str, Any] | None = None, **sections: Any) -> Any:
        recipe = make_recipe({"name": str(mbart), **(keys or {})}, **sections)
        tokenizer = load_tokenizer(recipe.model)
        data = from_dataset(Dataset.from_list(ROWS), SECTION, tokenizer)
        return build_model(recipe, tokenizer, {}), tokenizer, tokenize(data, tokenizer, SECTION)

    return load


@pytest.mark.parametrize("language", [None, "ko_KR"])
def test_labels_are_the_tokenizers_own_and_an_output_begins_as_they_do(
    language: str | None, load: Any
) -> None:
    model, tokenizer, tokens = load({"language": language})
    code = tokenizer.convert_tokens_to_ids(language or "en_XX")
    own = tokenizer(text_target=[row["summary"] for row in ROWS])["input_ids"]
    assert list(tokens["labels"]) == own
    assert all(code in row for row in [*tokens["labels"], *tokens["input_ids"]])
    batch = DataCollatorForSeq2Seq(tokenizer)([dict(row) for row in tokens])
    trained = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    with torch.no_grad():
        output = model.generate(batch["input_ids"], max_new_tokens=4, num_beams=1)
    begins = slice(0, list(trained[0]).index(code) + 1)
    assert torch.equal(output[:, begins], trained[:, begins])


def test_what_the_recipe_says_of_the_first_token_holds(load: Any) -> None:
    model, _, _ = load(generation={"decoder_start_token_id": 7, "forced_bos_token_id": 9})
    config: GenerationConfig = model.generation_config
    assert (config.decoder_start_token_id, config.forced_bos_token_id) == (7, 9)


def test_a_long_summary_is_cut_and_keeps_its_language(load: Any) -> None:
    _, tokenizer, _ = load()
    section = SECTION.model_copy(update={"max_summary_tokens": 4})
    data = from_dataset(Dataset.from_list(ROWS), section, tokenizer)
    labels = tokenize(data, tokenizer, section)["labels"]
    code = tokenizer.convert_tokens_to_ids("en_XX")
    assert all(len(row) == 4 and {code, tokenizer.eos_token_id} <= {*row} for row in labels)


def test_an_unknown_language_is_refused_with_the_nearest(load: Any) -> None:
    with pytest.raises(ModelError, match="got 'ko_KP'; did you mean 'ko_KR'"):
        load({"language": "ko_KP"})


def test_a_language_is_refused_where_the_tokenizer_marks_none(checkpoint: Path) -> None:
    section = make_recipe({"name": str(checkpoint), "language": "ko_KR"}).model
    with pytest.raises(ModelError, match="it has none., got 'ko_KR'; leave it out"):
        load_tokenizer(section)
