"""What a person sees of a running prediction."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence

from accelerate import PartialState

from hpo_summarize.progress import clock

_SECONDS = 30  # Between two lines where the output is no terminal.


class PredictionProgress:
    """Goes through the batches that are not done yet; the main process prints how far it is.

    Args:
        batches: The numbers of the rows of each batch.
        share: The numbers of this process's batches.
        done: The numbers of finished batches.
    """

    def __init__(self, batches: Sequence[range], share: Sequence[int], done: set[int]) -> None:
        self._batches, self._done = batches, done
        self._todo = [number for number in share if number not in done]

    def __iter__(self) -> Iterator[int]:
        start = shown = time.monotonic()
        live = PartialState().is_main_process and sys.stdout.isatty()
        self._print_start()
        for count, number in enumerate(self._todo, 1):
            yield number
            now = time.monotonic()
            if live or now - shown > _SECONDS:
                shown = now
                left = (now - start) / count * (len(self._todo) - count)
                self._print(f"batch {count} of {len(self._todo)}  to go {clock(left)}", live)
        if live and self._todo:
            print()

    def _print_start(self) -> None:
        rows = sum(len(batch) for batch in self._batches)
        done = sum(len(self._batches[number]) for number in self._done)
        state = PartialState()
        processes = f", {state.num_processes} processes" if state.num_processes > 1 else ""
        known = f", of which {done} are done already" if done else ""
        self._print(f"rows     {rows}{known}{processes}")

    def _print(self, line: str, live: bool = False) -> None:
        if PartialState().is_main_process:
            print(f"\r{line:<60}" if live else line, end="" if live else "\n", flush=True)
