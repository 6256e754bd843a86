"""Which rows are decoded together, and how their outputs come back into order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

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
