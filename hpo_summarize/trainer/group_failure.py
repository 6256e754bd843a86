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
from datetime import timedelta
from typing import NoReturn

import optuna
from torch.distributed import DistError, TCPStore

from hpo_summarize.distributed import SIGNAL_SECONDS, is_lost_peer
from hpo_summarize.errors import HpoError
from hpo_summarize.study.recovery import fail, put_back_own
from hpo_summarize.trainer.device_batches import Sizes, remember

_LOOK_SECONDS = 0.2  # Between looks of the main process at the store.
# Without a launcher the store is the main process's own, which may be gone already.
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 30  # A process that broke waits so long until the study knows of it.


@dataclass(frozen=True)
class Failure:
    """Why a process leaves its group.

    Attributes:
        rank: Of the process.
        number: Of the trial that it was at.
        reason: What broke it.
        smaller: Out of memory: the per-device batches to try next.
    """

    rank: int
    number: int
    reason: str
    smaller: Sizes | None = None

    def message(self) -> str:
        """What the user reads."""
        start = f"error: process {self.rank}, trial {self.number}: {self.reason}. "
        if self.smaller is None:
            return f"{start}The launch ends here; the same command goes on with the next trial"
        return (
            f"{start}The launch ends here; the same command goes on with this trial, with "
            f"{self.smaller[0]} examples at once on each device and more accumulation"
        )


class Alarm:
    """Carries the failure of one process to the main one, at any moment."""

    @functools.cached_property
    def _store(self) -> TCPStore:
        # A connection of its own: on the group's a waiting exchange may hold the lock.
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=_CONNECT_SECONDS),
        )

    @staticmethod
    def _key(name: str) -> str:
        """The store outlives a restart of the group by its launcher."""
        return f"hpo_summarize/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}/{name}"

    def raise_alarm(self, failure: Failure) -> None:
        """Returns when the main process has dealt with it, or is gone itself."""
        self._store.set(self._key("failure"), json.dumps(asdict(failure)))
        deadline = time.monotonic() + _ANSWER_SECONDS
        while not self._store.check([self._key("answer")]) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)

    def heard(self) -> Failure | None:
        """The failure of another process, if there is one."""
        if not self._store.check([self._key("failure")]):
            return None
        content = json.loads(self._store.get(self._key("failure")))
        smaller = content.pop("smaller")
        return Failure(**content, smaller=tuple(smaller) if smaller else None)

    def answer(self) -> None:
        """Lets the process that raised the alarm go."""
        self._store.set(self._key("answer"), "")


class Group:
    """The processes that train one trial together.

    Args:
        rank: Of this process.
        study: On the main process alone.
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
            # Without its launcher the store is gone, and nobody can be heard any more.
            with suppress(DistError):
                while not done.wait(_LOOK_SECONDS):
                    if failure := self._alarm.heard():
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
            with suppress(DistError):
                self._alarm.raise_alarm(failure)
        self._record_and_exit(failure)

    def _record_and_exit(self, failure: Failure | None) -> NoReturn:
        """Puts back the trial that this process is at, unless it has failed for good."""
        with self._leaving:  # The listener may come here, too, and one of the two is enough.
            if self._study is not None:
                if failure is not None and failure.smaller is not None:
                    remember(self._study, failure.smaller)
                elif failure is not None:
                    fail(self._study, failure.number, failure.reason)
                put_back_own(self._study)
                with suppress(DistError):
                    self._alarm.answer()
            sys.stdout.flush()
            os._exit(HpoError.exit_status)

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
