"""The errors a user can meet, and the exit status each one has on the command line."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


class HpoError(Exception):
    """Base of every error with a message written for the user.

    Attributes:
        exit_status: Status of the command line programs when this error ends them.
        shared: Every process of a launch has this error, and the main one prints it for all.
    """

    exit_status = 1
    shared = False


@dataclass(frozen=True)
class Problem:
    """One wrong setting: its key, the rule, the value and the next step."""

    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message}"


class RecipeError(HpoError):
    """The recipe or the command line is wrong; lists every error found, not only the first."""

    exit_status = 2

    def __init__(self, problems: Sequence[Problem], source: str = "recipe") -> None:
        self.problems = list(problems)
        self.source = source
        count = len(self.problems)
        headline = f"{source}: {count} error{'s' if count != 1 else ''} found"
        super().__init__("\n".join([headline, *(f"  {problem}" for problem in self.problems)]))

    def __reduce__(self) -> tuple[type[RecipeError], tuple[list[Problem], str]]:
        """Pickles the problems, not the message made of them."""
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


class RunStopped(HpoError):
    """A run cannot go on, for a reason other than the values of its trial.

    The trial is requeued, and the next run repeats it.
    """


class StudyMoved(RunStopped):
    """The file of a study, or the folder of its trials, was removed or replaced during a run."""


class ProcessError(RunStopped):
    """Some processes of a launch have an error that the others do not have, or are gone."""


class StudyError(HpoError):
    """The study cannot be opened, or does not fit the recipe."""

    exit_status = 2


class UnwrittenResults(HpoError):
    """The search has ended, and a file of its results could not be written."""


class MissingMetric(HpoError):
    """An evaluation did not return the metric that is to be reported."""


class SearchFailed(HpoError):
    """The search ended without a single finished trial, or was stopped by repeated failures."""


# What a disk, a quota or a file server refuses, which no hyperparameter causes: in the words of
# the system, and of SQLite.
_REFUSED = re.compile(
    "|".join(
        os.strerror(number)
        for number in (
            *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS),
            *(errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM),
        )
    )
    + "|database or disk is full|disk i/o error|attempt to write a readonly database",
    re.IGNORECASE,
)
# torch 2.13 closes the archive of a checkpoint that could not be written to its end with one of
# these, and the first error is gone (caffe2/serialize/inline_container.cc).
_CUT_OFF = re.compile("inline_container.cc|iostream error|PytorchStreamWriter failed")


def storage_failure(error: BaseException | None, place: object = None) -> str | None:
    """What a disk or a file server refused, also as the cause of another error.

    Args:
        error: Any error.
        place: What was written to or read from, where the error does not name it.

    Returns:
        One line; None for an error of another kind.
    """
    while error is not None:
        text, path = str(error), getattr(error, "filename", None) or place
        found = _REFUSED.search(text)
        if found or _CUT_OFF.search(text):
            reason = found[0] if found else "a file could not be written to its end"
            return f"{reason} ({path})" if path else reason
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


@contextmanager
def stopping_at_storage_failure(place: object = None) -> Iterator[None]:
    """Raises `RunStopped` for what a disk or a file server refuses.

    Args:
        place: See `storage_failure`.

    Raises:
        RunStopped: A disk or a file server refused it.
    """
    try:
        yield
    except HpoError:
        raise
    except Exception as error:
        reason = storage_failure(error, place)
        if reason is None:
            raise
        raise RunStopped(
            f"{reason}; free space there, or make it writable again, and start the same "
            "command again: it repeats what was cut off, and what has finished is kept"
        ) from error


def common_failure(
    reports: Sequence[tuple[str, int] | None], own: HpoError | None = None
) -> HpoError | None:
    """What every process of a launch raises where one of them or all have failed.

    Args:
        reports: Message and exit status by rank; None where all is well.
        own: The error of this process.
    """
    failed = {rank: report for rank, report in enumerate(reports) if report is not None}
    if not failed:
        return None
    failure = own
    if failure is None or len(failed) < len(reports) or len(set(failed.values())) > 1:
        failure = ProcessError("\n".join(f"process {r}: {text}" for r, (text, _) in failed.items()))
        failure.exit_status = max(status for _, status in failed.values())
    failure.shared = True
    return failure


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a message on a wrong name: `"; did you mean 'x'?"` with the nearest known one.

    Args:
        name: The wrong name.
        known: All names that may be proposed.
        otherwise: The next step where none is near; default: none.
    """
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    step = f"did you mean '{nearest[0]}'?" if nearest else otherwise
    return step and f"; {step}"
