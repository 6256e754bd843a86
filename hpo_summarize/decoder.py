"""The one decoder, of evaluations, the decoding stage, predictions and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import (
    DynamicCache,
    EncoderDecoderCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.generation import with_settings
from hpo_summarize.models.families import family_of, require_family


@contextmanager
def decoding_with(model: Any, settings: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Decodes with other settings for a while.

    As arguments of `generate` they would be merged into the model's generation config, whose
    length penalty for beams, for example, would stay beside `num_beams=1`.

    Args:
        model: A model, or its wrapper of peft.
        settings: See `with_settings`.

    Yields:
        The settings that are arguments of `generate` alone, such as a `logits_processor`.
    """
    base = unwrap_peft_model(model)
    own = base.generation_config
    base.generation_config, arguments = with_settings(own, settings)
    try:
        yield arguments
    finally:
        base.generation_config = own


@contextmanager
def own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Samples with the random numbers of a seed; those of the caller stay what they are."""
    devices = [] if device.type == "cpu" else [device]
    # Without the type, torch would take the accelerator of the machine, whatever `device` is.
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.manual_seed(seed)
        yield


def plan_batches(
    lengths: Sequence[int], largest: int, new_tokens: int, process: int = 0, processes: int = 1
) -> list[list[int]]:
    """Length-bucketed batches for one process, the longest first.

    A batch holds as many rows as fit into the memory of `largest` rows of the greatest length,
    where a row takes memory for its own tokens, padded to the longest of its batch, and for those
    that are generated. (The number of beams multiplies all of it and makes no difference.) What
    runs out of memory does so at once, with the first batch.

    The rows are dealt out by length, so that every process gets as much to do as the others.

    Args:
        lengths: Length of each row, in tokens.
        largest: Rows of the greatest length that a device takes at once.
        new_tokens: Most tokens that are generated for a row.
        process: Rank of this process.
        processes: How many there are.

    Returns:
        Positions in `lengths`; over all processes, every one of them exactly once.

    >>> plan_batches([10, 30, 20, 10, 10], largest=2, new_tokens=10)
    [[1, 2], [0, 3, 4]]
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    budget = largest * (max(lengths, default=0) + new_tokens)
    batches: list[list[int]] = []
    for row in order[process::processes]:
        if not batches or (len(batches[-1]) + 1) * (lengths[batches[-1][0]] + new_tokens) > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def put_in_order(
    parts: Sequence[tuple[Sequence[int], np.ndarray]], count: int, padding: int
) -> np.ndarray:
    """Arrays of some rows each as one array, each row in its place.

    Args:
        parts: Positions of rows, and their array of shape `(rows, tokens)`.
        count: Rows of all parts together.
        padding: Token id that fills the shorter rows at their end.

    Returns:
        Shape `(count, tokens of the longest)`.
    """
    width = max(array.shape[1] for _, array in parts)
    whole = np.full((count, width), padding, dtype=parts[0][1].dtype)
    for rows, array in parts:
        whole[list(rows), : array.shape[1]] = array
    return whole


def generate(model: Any, batch: Mapping[str, Any], **arguments: Any) -> torch.Tensor:
    """Token ids for one batch, as the generation config of the model says.

    Args:
        model: A model, or its wrapper of peft.
        batch: A collated batch on the device of the model, with or without labels.
        **arguments: Further arguments of `generate`.

    Returns:
        Shape `(rows, tokens)`, padded at the end.
    """
    base = unwrap_peft_model(model)
    inputs = require_family(base.config).generation_inputs(batch)
    if (cache := beam_cache(base, base.generation_config)) is not None:
        arguments = {"past_key_values": cache, **arguments}
    return model.generate(**inputs, **arguments)


def decode_texts(tokenizer: PreTrainedTokenizerBase, ids: np.ndarray) -> list[str]:
    """Summaries as text, without special tokens and white space around them.

    Args:
        tokenizer: The model's.
        ids: Shape `(rows, tokens)`, padded at the end.
    """
    return [text.strip() for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]


class SharedCrossAttentionCache(EncoderDecoderCache):
    """KV cache of an encoder-decoder that skips the reordering of its cross-attention part.

    Beam search reorders the cache after every token. All beams of an example attend to the same
    encoded dialogue, and a beam is never moved to another example, so that the cross-attention
    part is the same in any order. It is the larger part by far; transformers 5.23 copies it with
    every token all the same (`EncoderDecoderCache.reorder_cache`), 70% of the time at 8 beams.
    """

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorders the self-attention cache by `beam_idx`, of shape `(rows * beams,)`."""
        self.self_attention_cache.reorder_cache(beam_idx)


def beam_cache(model: PreTrainedModel, config: GenerationConfig) -> EncoderDecoderCache | None:
    """An empty cache for one call of `model.generate(past_key_values=...)`.

    Args:
        model: Without a wrapper of peft.
        config: What `generate` will follow.

    Returns:
        None where `generate` has to make its own one: without beams nothing is reordered, and
        another kind of cache or a model's own way of reordering it are left as they are.
    """
    family = family_of(model.config)
    if (
        family is None
        or not family.cross_attention
        or (config.num_beams or 1) == 1
        or config.use_cache is False
        or config.cache_implementation is not None  # `generate` takes no cache beside it.
        or hasattr(model, "_reorder_cache")
        or not model._supports_default_dynamic_cache()
    ):
        return None
    decoder = model.config.get_text_config(decoder=True)
    return SharedCrossAttentionCache(DynamicCache(config=decoder), DynamicCache(config=decoder))
