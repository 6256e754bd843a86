"""Ctrl-C ends a program once, and never in the middle of its bookkeeping.

One interrupt comes as several signals: a terminal sends SIGINT to a launcher and its processes, the
launcher sends them SIGTERM, and the system sends them one for each thread of a launcher that is
killed. All of them count as the first one. Raised again, they would cut off what it began: a trial
that is being queued again, a transaction of the study.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hpo_summarize.errors import ProcessError

SAME_SECONDS = 5  # From the first signal of an interrupt to the last that belongs to it.
_AGAIN_SECONDS = 0.1  # Until an interrupt that came in a destructor is raised outside of it.
# A signal that ended another process first comes to this one within that time.
_SIGNAL_SECONDS = 2


class _Signals:
    """When the signals of this process came."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Takes the next signal for the first of its interrupt."""
        self._first = float("-inf")

    def begins_interrupt(self) -> bool:
        """Whether the signal that has just come is the first of its interrupt."""
        now = time.monotonic()
        begins = now - self._first >= SAME_SECONDS
        if begins:
            self._first = now
        return begins


_signals = _Signals()


def interrupt_once() -> None:
    """Lets SIGTERM, which a scheduler sends (Slurm, Kubernetes), end a program as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # Not under nohup.
        signal.signal(signal.SIGINT, _interrupt)
    sys.unraisablehook = _raise_dropped


def _interrupt(number: int, frame: object) -> None:
    if _signals.begins_interrupt():
        raise KeyboardInterrupt


def _raise_dropped(dropped: sys.UnraisableHookArgs) -> None:
    """Raises an interrupt again that came in a destructor, where Python drops it."""
    if dropped.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(dropped)
        return

    def repeat() -> None:
        _signals.reset()
        # Wakes the main thread, too, where it waits for the system.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    timer = threading.Timer(_AGAIN_SECONDS, repeat)
    timer.daemon = True
    timer.start()


class DeferredInterrupt:
    """While it is entered, an interrupt outside of `allowed` waits until the next `check`.

    A trial that Optuna has begun and that has no worker yet would stay running for ever. SIGTERM is
    treated in the same way where the program handles it. A second interrupt, seconds later, does
    not wait.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._pending = False
        self._handlers: dict[int, Any] = {}
        self._hook = sys.unraisablehook

    def __enter__(self) -> DeferredInterrupt:
        _signals.reset()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._handle)
        if signal.SIGTERM in self._handlers:
            self._hook, sys.unraisablehook = sys.unraisablehook, _raise_dropped
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()
        sys.unraisablehook = self._hook

    def _handle(self, number: int, frame: object) -> None:
        if not _signals.begins_interrupt():
            return
        again, self._pending = self._pending, True
        if self._allowed or again:
            raise KeyboardInterrupt

    @property
    def pending(self) -> bool:
        """Whether there was an interrupt; one outside of `allowed` waits."""
        return self._pending

    def check(self) -> None:
        """Raises the interrupt that waits or was lost, if there is one."""
        if self._pending:
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """A part of the run that an interrupt may cut off anywhere."""
        self._allowed = True
        try:
            self.check()
            yield
        finally:
            self._allowed = False


def is_lost_process(error: BaseException) -> bool:
    """Whether a collective operation failed because another process of the group is gone."""
    text = str(error)
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


@contextmanager
def detect_lost_process() -> Iterator[None]:
    """Names the cause where a collective operation fails.

    Raises:
        ProcessError: Another process of the group is gone.
        KeyboardInterrupt: It had a signal that this process gets, too.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        time.sleep(_SIGNAL_SECONDS)  # An interrupt is raised here.
        raise ProcessError(
            "another process of the launch is gone, and this one ends with it; what has finished "
            "is kept; the same command continues from there"
        ) from None
