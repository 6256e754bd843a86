"""Data sets that a caller has loaded, and token ids for the model."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import make_rows
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hpo_summarize.config.schema import DataSection
from hpo_summarize.errors import DataError
from hpo_summarize.models.tokenization import from_dataset, tokenize

ROWS = make_rows(12, seed=3)


def section(**keys: Any) -> DataSection:
    return DataSection(**{"train": "unused", **keys})


def test_a_loaded_data_set_is_read_like_a_file_and_tokens_are_decoded(
    tokens: Dataset, rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase
) -> None:
    data = from_dataset(Dataset.from_list(rows), section(), tokenizer)
    decoded = from_dataset(tokens, section(), tokenizer)
    assert data.ids[:2] == ["row_0", "row_1"]
    assert decoded.dialogues == data.dialogues and decoded.references == data.references


def test_a_loaded_data_set_with_neither_text_nor_tokens_is_refused(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    with pytest.raises(DataError, match="the data set given: no column is called dialogue"):
        from_dataset(Dataset.from_dict({"a": ["b"]}), section(), tokenizer)
    with pytest.raises(DataError, match="there are no rows"):
        from_dataset(Dataset.from_dict({"dialogue": []}), section(), tokenizer)


@pytest.mark.parametrize("adds_end", [True, False])
@pytest.mark.parametrize("limit", [4, 100])
def test_labels_end_with_the_end_token_and_nothing_is_too_long(
    adds_end: bool, limit: int, tokenizer: PreTrainedTokenizerBase
) -> None:
    if not adds_end:
        roles = {key: str(token) for key, token in tokenizer.special_tokens_map.items()}
        core = tokenizer.backend_tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        core.post_processor = None
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **roles)
    keys = section(max_dialogue_tokens=8, max_summary_tokens=limit)
    data = from_dataset(Dataset.from_list(ROWS), keys, tokenizer)
    tokens = tokenize(data, tokenizer, keys)
    assert all(row[-1] == tokenizer.eos_token_id for row in tokens["labels"])
    assert max(map(len, tokens["labels"])) <= limit
    assert {len(row) for row in tokens["input_ids"]} == {8}
    assert all(row.count(tokenizer.eos_token_id) == 1 for row in tokens["labels"])
