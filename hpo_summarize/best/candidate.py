"""A trial that a final model can be made of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hpo_summarize.recipe import Recipe


@dataclass(frozen=True)
class Candidate:
    """A finished trial of a search.

    Attributes:
        number: Number of the trial.
        params: All its hyperparameters by name.
        epoch: Best epoch, above 0, from which its weights and its values are.
        values: Value of each objective.
        study_name: The study that it belongs to.
        max_new_tokens: Most tokens of a summary, as the study recorded it; None: it did not.
        own_decoding: Whether its decoding is the recipe's own, since in a staged search no other
            was tried in full on it; its values are then those of the first stage.
    """

    number: int
    params: dict[str, Any]
    epoch: float
    values: tuple[float, ...]
    study_name: str
    max_new_tokens: int | None = None
    own_decoding: bool = False

    def n_epochs(self, recipe: Recipe) -> float:
        """The epochs that its schedule was laid out for."""
        return self.params.get("num_epochs", recipe.training.num_epochs)


def first_of_each(candidates: Iterable[Candidate]) -> list[Candidate]:
    """One candidate a trained trial: a staged search has several decodings of it."""
    found: dict[int, Candidate] = {}
    for one in candidates:
        found.setdefault(one.number, one)
    return list(found.values())
