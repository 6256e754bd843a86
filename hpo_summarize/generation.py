"""Decoding: generation configs, length-bucketed batches, the key-value cache, generated texts."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel

from hpo_summarize.config.parameters import BEAMS_ONLY, SAMPLING_ONLY

_NEW_TOKENS_BY_DEFAULT = 20  # Of `generate`, where neither limit is set.

# Shares of the rows. With no more distinct summaries than this, a model hardly reads the dialogue:
# small BARTs without pretraining wrote 1 to 23 texts for 500 dialogues.
FEW_DISTINCT = 0.05
# From here on the limit, and not the model, decides where a typical summary ends.
MANY_CUT = 0.5
_N_EXAMPLES = 2
_SHOWN = 200  # Characters of an example in a printed line.


@dataclass(frozen=True)
class Summaries:
    """Generated summaries.

    Attributes:
        texts: One a row.
        n_cut: How many reached the length limit without an end token of the model's own.
    """

    texts: list[str]
    n_cut: int

    def __add__(self, other: Summaries) -> Summaries:
        return Summaries([*self.texts, *other.texts], self.n_cut + other.n_cut)

    def describe(self) -> dict[str, Any]:
        """Counts in JSON's types.

        Returns:
            `n_rows`; `n_distinct` texts, where runs of white space count as one space; `n_empty`;
            `n_cut`; and as `examples` the two most frequent texts.
        """
        texts = Counter(" ".join(text.split()) for text in self.texts)
        return {
            "n_rows": len(self.texts),
            "n_distinct": len(texts),
            "n_empty": texts[""],
            "n_cut": self.n_cut,
            "examples": [text for text, _ in texts.most_common(_N_EXAMPLES)],
        }


def count_in_words(description: Mapping[str, Any]) -> str:
    """The counts of `Summaries.describe` in one line."""
    counts = "{n_distinct} distinct of {n_rows}, {n_empty} empty, {n_cut} cut at the length limit"
    return counts.format_map(description)


def degenerate_note(description: Mapping[str, Any] | None) -> str | None:
    """Says what is wrong with summaries as a whole, whatever they score; None if nothing is.

    Named are summaries that are all empty, all equal, or nearly so (`FEW_DISTINCT`), and ones that
    mostly end at the length limit (`MANY_CUT`).

    Args:
        description: What `Summaries.describe` returned; None where nothing is known.
    """
    if description is None:
        return None
    n_rows, n_distinct, n_cut = (description[key] for key in ("n_rows", "n_distinct", "n_cut"))
    found = []
    if n_rows and description["n_empty"] == n_rows:
        found.append(f"all {n_rows} summaries are empty")
    elif n_distinct == 1 < n_rows:
        found.append(f"all {n_rows} summaries are the same text")
    elif n_rows and n_distinct <= n_rows * FEW_DISTINCT:
        found.append(f"only {n_distinct} distinct summaries for {n_rows} dialogues")
    if n_rows and n_cut >= n_rows * MANY_CUT:
        found.append(f"{n_cut} of {n_rows} summaries are cut at the length limit")
    return "; ".join(found) or None


def summaries_in_words(description: Mapping[str, Any] | None) -> list[str]:
    """Lines to print below a result: the counts, and the note with an example if there is one."""
    if description is None:
        return []
    lines = [f"summaries {count_in_words(description)}"]
    if note := degenerate_note(description):
        lines.append(f"note     {note}: {description['examples'][0][:_SHOWN]!r}")
    return lines


def count_cut(ids: np.ndarray, config: GenerationConfig) -> int:
    """Number of rows that ended at the length limit instead of at an end token.

    Args:
        ids: Output of `generate` of an encoder-decoder, of shape `(rows, tokens)`: the start token
            and the generated ones, padded at the end.
        config: What they were generated with.
    """
    generated = ids[:, 1:]  # BART and Pegasus start with what is their end token, too, or padding.
    end_tokens = [] if config.eos_token_id is None else config.eos_token_id
    ends = np.isin(generated, end_tokens)
    cut = ~ends.any(axis=1)
    if config.forced_eos_token_id is not None and generated.shape[1] >= most_new_tokens(config):
        # BART's checkpoints put an end token on the last place whatever the model wants.
        cut |= ends.argmax(axis=1) >= most_new_tokens(config) - 1
    return int(cut.sum())


def clear_idle_flags(config: GenerationConfig, values: Mapping[str, Any] | None = None) -> None:
    """Takes out flags that cannot act: with one of them set, no checkpoint can be saved.

    `facebook/bart-base` has `early_stopping` for its 4 beams, and a trial may run with 1.

    Args:
        config: Changed in place.
        values: Values that will take the place of those in `config`.
    """
    values = values or {}
    if not values.get("do_sample", config.do_sample):
        for name in SAMPLING_ONLY:
            setattr(config, name, None)
    if (values.get("num_beams", config.num_beams) or 1) == 1:
        for name in BEAMS_ONLY:
            setattr(config, name, None)


def with_settings(
    config: GenerationConfig, settings: Mapping[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """A generation config with arguments of `generate` in the place of its own values.

    Args:
        config: A model's own; left as it is.
        settings: Values by name; None stands for the model's own. `max_length` alone takes the
            place of the model's `max_new_tokens`, beside which `generate` would pass over it.

    Returns:
        The new config, and those of `settings` that are no part of one.

    Raises:
        ValueError: See `put_values`.
    """
    config = copy.deepcopy(config)
    given = {name: value for name, value in settings.items() if value is not None}
    whole: GenerationConfig | None = given.pop("generation_config", None)
    if whole is not None:
        whole_values = {k: v for k, v in whole.to_dict().items() if v is not None}
        whole_values.pop("transformers_version", None)
        given = whole_values | given
    return config, put_values(config, given)


def put_values(
    config: GenerationConfig, values: Mapping[str, Any], later: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Puts values in the place of those in `config`, which keeps none that contradicts them.

    Of the two names of a limit the one in `values` counts. A least length of `config` that is above
    the most tokens in `values` goes with a warning; `generate` would write only texts that are cut.

    Args:
        config: Changed in place.
        values: Values by name.
        later: Values that will take the place of those in `config`.

    Returns:
        Those of `values` that are no fields of a generation config.

    Raises:
        ValueError: A least length in `values` is above the most tokens.
    """
    others = config.update(**values)
    for new, whole in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if values.get(whole) is not None and values.get(new) is None:
            setattr(config, new, None)
        elif getattr(config, new) is not None:
            setattr(config, whole, None)
    if later is None:
        _fit_least_length(config, values)
    clear_idle_flags(config, later)
    return others


def _fit_least_length(config: GenerationConfig, values: Mapping[str, Any]) -> None:
    most = most_new_tokens(config)
    for name, extra in (("min_new_tokens", 0), ("min_length", 1)):  # The start token counts there.
        least = getattr(config, name)
        if least is None or least <= most + extra:
            continue
        rule = f"{name} is {least}, and at most {most} new tokens are generated"
        if values.get(name) is not None:
            raise ValueError(f"{rule}; lower {name}, or raise max_new_tokens")
        warnings.warn(f"{rule}: the model's own {name} is dropped", stacklevel=2)
        setattr(config, name, None)


def most_new_tokens(config: GenerationConfig) -> int:
    """Most tokens that are generated for a row of an encoder-decoder."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is not None:
        return config.max_length - 1  # The start token counts there.
    return _NEW_TOKENS_BY_DEFAULT


def set_decoding(config: GenerationConfig, values: Mapping[str, Any]) -> None:
    """Puts decoding values in the place of those in `config`, with the cache on by default.

    `Trainer.__init__` writes `use_cache=False` into the model's config, from where it gets into the
    generation config of every model that is built from the same config object.

    Args:
        config: Changed in place.
        values: Fields of `GenerationConfig`.

    Raises:
        ValueError: See `put_values`.
    """
    config.use_cache = True
    put_values(config, values)


IGNORED_LABEL = -100  # Of a position that counts neither in the loss nor in a text.


def plan_batches(
    lengths: Sequence[int], largest: int, new_tokens: int, process: int = 0, processes: int = 1
) -> list[list[int]]:
    """Batches of like length for one process, the longest first.

    A batch holds as many rows as fit into the memory of `largest` rows of the greatest length,
    where a row takes memory for its own tokens, padded to the longest of its batch, and for those
    that are generated. (The number of beams multiplies all of it and makes no difference.) What
    runs out of memory does so at once, with the first batch.

    The rows are dealt out by length, so that every process gets as much to do as the others.

    Args:
        lengths: Length of each row, in tokens.
        largest: Rows of the greatest length that a device takes at once.
        new_tokens: Most tokens that are generated for a row.
        process: Number of this process.
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
    parts: Iterable[tuple[Sequence[int], np.ndarray]], count: int, padding: int
) -> np.ndarray:
    """Outputs of batches as one array, each row in its place.

    Args:
        parts: Positions of the rows of a batch, and its array of shape `(rows, tokens)`.
        count: Rows of all batches together.
        padding: Token id that fills the shorter rows at their end.

    Returns:
        Shape `(count, tokens of the longest)`.
    """
    parts = list(parts)
    width = max(array.shape[1] for _, array in parts)
    whole = np.full((count, width), padding, dtype=parts[0][1].dtype)
    for rows, array in parts:
        whole[list(rows), : array.shape[1]] = array
    return whole


class SharedCrossAttentionCache(EncoderDecoderCache):
    """The usual cache of an encoder-decoder, whose cross-attention part stays where it is.

    Beam search puts the cache in a new order after every token. All beams of an example look at
    the same encoded dialogue, and a beam is never moved to another example, so that the
    cross-attention part is the same in any order. It is the larger part by far: transformers 5.23
    copies it with every token all the same, which took 70% of the time at 8 beams.
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
    if (
        not model.config.is_encoder_decoder
        or (config.num_beams or 1) == 1
        or config.use_cache is False
        or config.cache_implementation is not None  # `generate` takes no cache beside it.
        or hasattr(model, "_reorder_cache")
        or not model._supports_default_dynamic_cache()
    ):
        return None
    decoder = model.config.get_text_config(decoder=True)
    return SharedCrossAttentionCache(DynamicCache(config=decoder), DynamicCache(config=decoder))
