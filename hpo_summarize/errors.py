"""The errors a user can meet, and the exit status each one has on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class HpoError(Exception):
    """Base of every error with a message written for the user.

    Attributes:
        exit_status: Status of the command line programs when this error ends them.
        told_by_main: It came from the main process of a group, which tells the user.
    """

    exit_status = 1
    told_by_main = False


@dataclass(frozen=True)
class Problem:
    """One wrong setting: where it stands and what to do about it."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


class RecipeError(HpoError):
    """The recipe or the command line is wrong; holds every problem found, not only the first."""

    exit_status = 2

    def __init__(self, problems: Sequence[Problem], source: str = "recipe") -> None:
        self.problems = list(problems)
        self.source = source
        count = len(self.problems)
        headline = f"{source}: {count} problem{'s' if count != 1 else ''} to mend"
        super().__init__("\n".join([headline, *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[list[Problem], str]]:
        """Makes the error the same again in another process."""
        return type(self), (self.problems, self.source)


class DataError(HpoError):
    """The data cannot be used as they are."""

    exit_status = 2


class ModelError(HpoError):
    """The pretrained model or its tokenizer cannot be used as the recipe asks."""

    exit_status = 2


class LaunchError(HpoError):
    """The processes were started in a way in which they cannot work."""

    exit_status = 2


class StudyError(HpoError):
    """The study cannot be opened, or does not fit the recipe."""

    exit_status = 2


class MissingMetric(HpoError):
    """An evaluation did not return the metric that is to be reported."""


class SearchFailed(HpoError):
    """The search ended without a single finished trial, or was stopped by repeated failures."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the known name nearest to `name`, or an empty string."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{nearest[0]}'?" if nearest else ""
