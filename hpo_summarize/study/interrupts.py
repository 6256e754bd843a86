"""Ctrl-C ends a trial, and not the bookkeeping between two trials."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class DeferredInterrupt:
    """While it is entered, an interrupt outside of `allowed` waits until the next `check`.

    A trial that Optuna has begun and that nobody has signed yet would stay running for ever.
    SIGTERM is treated in the same way where the program handles it. A second interrupt never waits.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._pending = False
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> DeferredInterrupt:
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
        if self._allowed or self._pending:
            raise KeyboardInterrupt
        self._pending = True

    @property
    def pending(self) -> bool:
        """Whether an interrupt waits."""
        return self._pending

    def check(self) -> None:
        """Raises the interrupt that waits, if one does."""
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
