"""Noised documents for pretraining: text infilling and sentence permutation.

Both are those of Lewis et al. 2020, "BART: Denoising Sequence-to-Sequence Pre-training", section
2.2, with turns in place of sentences. A document is a list of token ids without special tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from .tokenizer import BOS, EOS, MASK, PAD

MASKED_SHARE = 0.15  # of the tokens; BART's 0.3 leaves a model this small too little to copy
MEAN_SPAN = 3.0  # tokens in a masked span, as in BART
WHOLE_SHARE = 0.25  # of the dialogues drawn; the others are cut to a few turns, which is faster
MAX_CUT_TURNS = 3
IGNORED = -100  # the label that the loss leaves out


def add_noise(document: Sequence[int], newline: int, rng: np.random.Generator) -> list[int]:
    """Returns a copy with its turns permuted and some of its spans masked.

    Args:
        document: Token ids, the turns separated by `newline`.
        newline: The token between two turns.
        rng: Where the noise comes from.
    """
    turns = split_turns(document, newline)
    return mask_spans(_join([turns[i] for i in rng.permutation(len(turns))], newline), rng)


def mask_spans(document: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Replaces spans of Poisson length by one mask each until the masked share is reached.

    A span of length 0 inserts a mask and removes nothing, as in BART.
    """
    budget = round(MASKED_SHARE * len(document))
    noised = list(document)
    while budget > 0:
        length = min(int(rng.poisson(MEAN_SPAN)), budget)
        start = int(rng.integers(0, len(noised) - length + 1))
        noised[start : start + length] = [MASK]
        budget -= max(1, length)
    return noised


def split_turns(document: Sequence[int], newline: int) -> list[list[int]]:
    """Cuts a document at its newlines."""
    turns: list[list[int]] = [[]]
    for token in document:
        if token == newline:
            turns.append([])
        else:
            turns[-1].append(token)
    return turns


def _join(turns: Sequence[Sequence[int]], newline: int) -> list[int]:
    return [token for turn in turns for token in [*turn, newline]][:-1]


def draw_document(
    documents: Sequence[Sequence[int]], newline: int, rng: np.random.Generator
) -> Sequence[int]:
    """Draws a document, most times cut to one, two or three turns in a row."""
    document = documents[int(rng.integers(len(documents)))]
    if rng.random() < WHOLE_SHARE:
        return document
    turns = split_turns(document, newline)
    n_turns = int(rng.integers(1, MAX_CUT_TURNS + 1))
    start = int(rng.integers(0, max(1, len(turns) - n_turns + 1)))
    return _join(turns[start : start + n_turns], newline)


def draw_batches(
    documents: Sequence[Sequence[int]], newline: int, batch_size: int, rng: np.random.Generator
) -> Iterator[dict[str, torch.Tensor]]:
    """Yields `input_ids`, `attention_mask` and `labels`, each (batch, longest), for ever.

    Documents of similar length come together, which saves padding.
    """
    while True:
        drawn = [draw_document(documents, newline, rng) for _ in range(8 * batch_size)]
        drawn.sort(key=len)
        for start in rng.permutation(range(0, len(drawn), batch_size)):
            batch = drawn[start : start + batch_size]
            noised = pad([[BOS, *add_noise(d, newline, rng), EOS] for d in batch], PAD)
            labels = pad([[BOS, *document, EOS] for document in batch], IGNORED)
            yield {"input_ids": noised, "attention_mask": noised.ne(PAD).long(), "labels": labels}


def pad(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    """Stacks rows of ids into one tensor (rows, longest), filled up at the right."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
