"""What happens when one process of a group breaks while the others wait for it in an exchange.

Nothing can call them back from there, so the launch ends. Before that the study learns why: from
the process that broke, over the key-value store of the launcher, which no exchange can block.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import NoReturn

import optuna
from torch.distributed import DistError, TCPStore

from hpo_summarize.errors import HpoError
from hpo_summarize.launch.processes import SIGNAL_SECONDS, connect, is_lost_peer, key
from hpo_summarize.redact import redact_url
from hpo_summarize.study.recovery import fail, put_back_own
from hpo_summarize.training.devices import Sizes, remember
from hpo_summarize.training.trial import failure_reason

_LOOK_SECONDS = 0.2  # Between looks of the main process at the store.
# Without a launcher the store is the main process's own, which may be gone already.
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 30  # A process that broke waits so long until the study knows of it.


@dataclass(frozen=True)
class Failure:
    """Why a process leaves its group.

    Attributes:
        rank: Rank of the process, from 0.
        number: Number of the trial that it was at.
        reason: What broke it.
        smaller: Per-device batch sizes to try next, where memory ran out; else None.
        lasts: Whether the values of the trial would break it again; otherwise the next run goes
            on with it.
    """

    rank: int
    number: int
    reason: str
    smaller: Sizes | None = None
    lasts: bool = True

    def message(self) -> str:
        """What the user reads."""
        line = (
            f"error: process {self.rank}, trial {self.number}: {self.reason}. The launch ends "
            f"here; the same command goes on with {'the next' if self.lasts else 'this'} trial"
        )
        if self.smaller is None:
            return line
        return (
            f"{line}, with {self.smaller[0]} examples at once on each device and more accumulation"
        )


def failure_of(rank: int, number: int, error: Exception, smaller: Sizes | None = None) -> Failure:
    """What a process that met `error` in trial `number` tells the others; see `Failure`."""
    if isinstance(error, HpoError):  # The set-up of this process is to blame, and no values.
        return Failure(rank, number, str(error), lasts=False)
    return Failure(rank, number, failure_reason(error), smaller, lasts=smaller is None)


class Alarm:
    """Carries the failure of one process to the main one, at any moment."""

    @functools.cached_property
    def _store(self) -> TCPStore:
        # A connection of its own: on the group's a waiting exchange may hold the lock.
        return connect(_CONNECT_SECONDS)

    def raise_alarm(self, failure: Failure) -> None:
        """Returns when the main process has dealt with it, or is gone itself."""
        self._store.set(key("failure"), json.dumps(asdict(failure)))
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not self._store.check([key("answer")]) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)

    def heard(self) -> Failure | None:
        """The failure of another process, if there is one."""
        if not self._store.check([key("failure")]):
            return None
        content = json.loads(self._store.get(key("failure")))
        smaller = content.pop("smaller")
        return Failure(**content, smaller=tuple(smaller) if smaller else None)

    def answer(self) -> None:
        """Lets the process that raised the alarm go."""
        self._store.set(key("answer"), "")


class Group:
    """The processes that train one trial together.

    Args:
        rank: Rank of this process, from 0.
        study: The study, on the main process alone; None on the others.
    """

    def __init__(self, rank: int, study: optuna.Study | None = None) -> None:
        self._rank = rank
        self._study = study
        self._alarm = Alarm()
        self._leaving = threading.Lock()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Meanwhile the main process hears of the failures of others, whatever it waits for."""
        done = threading.Event()

        def listen() -> None:
            while not done.wait(_LOOK_SECONDS):
                try:
                    failure = self._alarm.heard()
                except (DistError, OSError):
                    return  # The store is gone with the launcher, and nobody can be heard any more.
                if failure is not None:
                    self._record_and_exit(failure)

        listener = threading.Thread(target=listen, daemon=True, name="group failures")
        listener.start()
        try:
            yield
        finally:
            done.set()
            listener.join()

    def leave(self, failure: Failure, error: Exception) -> NoReturn:
        """Ends this process after an error that the others do not know of.

        Raises:
            KeyboardInterrupt: The error is but the end of another process that had the same signal.
        """
        if is_lost_peer(error):
            time.sleep(SIGNAL_SECONDS)  # A signal that waits is raised here.
            self._say(
                f"error: process {self._rank}, trial {failure.number}: another process of the "
                "launch is gone. The launch ends here; the same command goes on with this trial"
            )
            self._record_and_exit(self._alarm.heard() if self._study else None)
        self._say(failure.message())
        if self._study is None:
            with suppress(DistError, OSError):
                self._alarm.raise_alarm(failure)
        self._record_and_exit(failure)

    @contextmanager
    def leaving_when_broken(self, number: int) -> Iterator[None]:
        """An exchange outside of a trial's own work, from which a lost process ends this one."""
        try:
            yield
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            self.leave(Failure(self._rank, number, str(error)), error)

    def _record_and_exit(self, failure: Failure | None) -> NoReturn:
        """Puts back the trial that this process is at, unless it has failed for good."""
        with self._leaving:  # The listener may come here, too, and one of the two is enough.
            try:
                if self._study is not None:
                    self._record(self._study, failure)
            except Exception as error:
                self._say(f"error: the study could not be told of it: {redact_url(str(error))}")
            finally:
                sys.stdout.flush()
                os._exit(HpoError.exit_status)

    def _record(self, study: optuna.Study, failure: Failure | None) -> None:
        if failure is not None and failure.smaller is not None:
            remember(study, failure.smaller)
        elif failure is not None and failure.lasts:
            fail(study, failure.number, failure.reason)
        put_back_own(study)
        with suppress(DistError, OSError):
            self._alarm.answer()

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
