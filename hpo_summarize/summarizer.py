"""A model with its tokenizer that turns dialogues into summaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.config.schema import Recipe
from hpo_summarize.decoder import decode_texts, generate, own_random_numbers
from hpo_summarize.errors import HpoError, ModelError
from hpo_summarize.generation import Summaries, count_cut
from hpo_summarize.models.families import require_family
from hpo_summarize.training.arguments import eval_batch_size

SEED = 42  # Of each batch, so that sampled summaries are the same in every run.
# A tokenizer without a limit of its own has 10**30 as `model_max_length`.
_NO_LIMIT = 10**6


@dataclass(frozen=True)
class Summarizer:
    """Turns dialogues into summaries, always the same ones.

    The batches are rows in their order, and the random numbers begin anew with each of them. So the
    summaries do not depend on how many processes share the rows, on where a run was interrupted, or
    on what was summarised before.

    Attributes:
        model: The model, with its decoding in its generation config.
        tokenizer: The model's.
        max_dialogue_tokens: Longer dialogues are cut at the end.
        batch_size: Dialogues at once.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    max_dialogue_tokens: int
    batch_size: int

    def batches(self, count: int) -> list[range]:
        """The numbers of the rows of each batch, for `count` rows."""
        rows = range(count)
        return [rows[start : start + self.batch_size] for start in rows[:: self.batch_size]]

    def share(self, count: int) -> range:
        """The numbers of the batches of this process."""
        state = PartialState()
        return range(len(self.batches(count)))[state.process_index :: state.num_processes]

    def summarize(self, dialogues: Sequence[str]) -> Summaries:
        """The summaries of one batch; that of an empty dialogue is empty.

        Raises:
            HpoError: The device has not enough memory for a batch of this size.
        """
        rows = [row for row, text in enumerate(dialogues) if text.strip()]
        summaries = [""] * len(dialogues)
        if not rows:
            return Summaries(summaries, 0)
        ids = self._generate([dialogues[row] for row in rows])
        for row, text in zip(rows, decode_texts(self.tokenizer, ids), strict=True):
            summaries[row] = text
        config = unwrap_peft_model(self.model).generation_config
        return Summaries(summaries, count_cut(ids, config))

    def _generate(self, dialogues: list[str]) -> np.ndarray:
        limit, device = self.max_dialogue_tokens, PartialState().device
        batch = self.tokenizer(
            dialogues, max_length=limit, truncation=True, padding=True, return_tensors="pt"
        ).to(device)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        try:
            with own_random_numbers(device, SEED):
                return generate(self.model, inputs).cpu().numpy()
        except (torch.OutOfMemoryError, MemoryError):
            raise HpoError(
                f"the memory of the device is too small for {self.batch_size} dialogues at once; "
                "set training.per_device_eval_batch_size to fewer"
            ) from None

    def describe_decoding(self) -> str:
        """The generation settings that differ from the library's defaults, in one line."""
        given = unwrap_peft_model(self.model).generation_config.to_dict()
        # A saved config has the defaults written out, and a fresh one has none of them.
        known = GenerationConfig()._get_default_generation_params()
        shown = {
            key: value
            for key, value in given.items()
            if value is not None and value != known.get(key) and not _is_bookkeeping(key)
        }
        return ", ".join(f"{key} {value}" for key, value in sorted(shown.items()))


def _is_bookkeeping(key: str) -> bool:
    return key.endswith(("_token_id", "_version")) or key.startswith(("_", "use_cache", "output_"))


def load_summarizer(folder: Path, recipe: Recipe) -> Summarizer:
    """A model that `save_pretrained` wrote, as it is in its folder.

    Args:
        folder: Model, tokenizer and decoding.
        recipe: Gives the batch size; and `data.max_dialogue_tokens` where the tokenizer has no
            limit of its own (`model_max_length`), which scripts/train.py sets.

    Raises:
        ModelError: There is no such model.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"there is no model in {folder}; run scripts/train.py, which makes one, or name a "
            "folder with --model, or take the weights that the search has kept: --model best"
        )
    try:
        family = require_family(AutoConfig.from_pretrained(folder, local_files_only=True))
        model = family.auto_class.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # Whatever a damaged file makes its reader raise.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"the model in {folder} cannot be loaded ({reason}); run scripts/train.py again, "
            "or take another folder"
        ) from None
    limit = tokenizer.model_max_length
    limit = limit if limit < _NO_LIMIT else recipe.data.max_dialogue_tokens
    return make_summarizer(model, tokenizer, limit, recipe)


def make_summarizer(
    model: Any, tokenizer: PreTrainedTokenizerBase, max_dialogue_tokens: int, recipe: Recipe
) -> Summarizer:
    """A summarizer on this process's device, with the batch size of the recipe."""
    model = model.eval().to(PartialState().device)
    return Summarizer(model, tokenizer, max_dialogue_tokens, eval_batch_size(recipe))


def summarize_all(summarizer: Summarizer, dialogues: Sequence[str]) -> Summaries:
    """The summary of every dialogue, on every process, each of which does its share."""
    batches = summarizer.batches(len(dialogues))
    own = [
        (number, summarizer.summarize([dialogues[row] for row in batches[number]]))
        for number in summarizer.share(len(dialogues))
    ]
    found = dict(gather_object(own))
    return sum((found[number] for number in range(len(batches))), Summaries([], 0))
