"""One process decides, every process acts: the only place that broadcasts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

T = TypeVar("T")


def on_main(decide: Callable[[], T]) -> T:
    """Runs `decide` on the main process; every process gets its result, or its exception.

    Every process of the group must call this at the same point, since it waits for all of them.
    With one process it is a plain call.

    Args:
        decide: Called on the main process only; its result or exception must be picklable.

    Raises:
        BaseException: Whatever `decide` raised, on every process.
    """
    state = PartialState()
    if state.num_processes == 1:
        return decide()
    outcome: list = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = decide()
        except BaseException as error:  # noqa: B036 - the other processes must learn of any kind.
            outcome[1] = error
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result
