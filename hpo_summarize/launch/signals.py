"""Ctrl-C ends a program once, and never in the middle of its bookkeeping.

One interrupt comes as several signals: a terminal sends SIGINT to a launcher and its processes, the
launcher sends them SIGTERM, and the system sends them one for each thread of a launcher that is
killed. All of them count as the first one. Raised again, they would cut off what it began: a trial
that is being put back, a transaction of the study.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SAME_SECONDS = 5  # From the first signal of an interrupt to the last that belongs to it.
_AGAIN_SECONDS = 0.1  # Until an interrupt that came in a destructor is raised outside of it.


class _Signals:
    """When the signals of this process came."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Takes the next signal for the first of its interrupt."""
        self._first = float("-inf")

    def begins_interrupt(self) -> bool:
        """Whether the signal that has just come is the first of its interrupt."""
        now = time.monotonic()
        begins = now - self._first >= _SAME_SECONDS
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
    elif signal.getsignal(signal.SIGTERM) is _interrupt:  # Else `DeferredInterrupt` knows of it.
        _signals.forget()
        _start_timer(_AGAIN_SECONDS, lambda: _send_to_main(signal.SIGTERM))


def _start_timer(seconds: float, act: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()


def _send_to_main(number: signal.Signals) -> None:
    """Wakes the main thread, too, where it waits for the system."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


class DeferredInterrupt:
    """While it is entered, an interrupt outside of `allowed` waits until the next `check`.

    A trial that Optuna has begun and that nobody has signed yet would stay running for ever.
    SIGTERM is treated in the same way where the program handles it. Who interrupts again, seconds
    later, does not wait.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._pending = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> DeferredInterrupt:
        _signals.forget()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN, None):
                    self._handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _handle(self, number: int, frame: object) -> None:
        if not _signals.begins_interrupt():
            return
        again, self._pending = self._pending, True
        if self._allowed or again:
            self._raise_again_if_lost(signal.Signals(number))
            raise KeyboardInterrupt

    def _raise_again_if_lost(self, number: signal.Signals) -> None:
        """Python drops what is raised in a destructor, and a library may drop it, too."""

        def repeat() -> None:
            if self._allowed:
                _send_to_main(number)

        _start_timer(_SAME_SECONDS, repeat)

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
