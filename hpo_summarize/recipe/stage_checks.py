"""What must hold in a recipe whose decoding is searched in a stage of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from hpo_summarize import names
from hpo_summarize.errors import Problem


def stage_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Every reason why `search.decode: staged` cannot part the search space in two."""
    if parts.get("search", {}).get("decode") != "staged":
        return
    space = {k: v for k, v in parts.get("space", {}).items() if names.owner_of(k) is not None}
    decoding = {name for name in space if names.owner_of(name) == "generation"}
    if not decoding:
        yield Problem(
            "search.decode",
            "'staged' searches decoding in a stage of its own, and the space has no parameter of "
            "it; add num_beams, for example, or set decode to joint",
        )
    elif decoding == set(space):
        yield Problem(
            "search.decode",
            "'staged' searches the training first, and the space has no parameter of it; add "
            "learning_rate, for example, or set decode to joint",
        )
    for name, parameter in space.items():
        conditions = parameter.get("when") if isinstance(parameter, Mapping) else None
        for other in conditions if isinstance(conditions, Mapping) else ():
            if other in space and (other in decoding) != (name in decoding):
                yield Problem(
                    f"space.{name}.when.{other}",
                    f"with decode: staged, {name} and {other} are searched in different stages; "
                    "drop the condition, or set decode to joint",
                )
    if parts.get("training", {}).get("save_strategy", "epoch") == "no":
        yield Problem(
            "training.save_strategy",
            "with decode: staged, the second stage needs the weights of the first, got 'no'; set "
            "it to epoch",
        )
