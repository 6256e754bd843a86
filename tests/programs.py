"""The programs of scripts/, run in this process, which saves them the import of torch."""

from __future__ import annotations

import contextlib
import io
import runpy
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from conftest import REPOSITORY


@dataclass
class Outcome:
    """What a run of a program left: its exit status and what it printed."""

    status: int
    stdout: str
    stderr: str


def script(name: str) -> str:
    """The path of a program."""
    return str(REPOSITORY / "scripts" / f"{name}.py")


@contextlib.contextmanager
def restored_signals() -> Iterator[None]:
    """A program that ends ignores signals, and what is started later would ignore them, too."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run_program(name: str, *arguments: Any) -> Outcome:
    """Runs a program as from a shell, and returns what came of it."""
    status, out, err = 0, io.StringIO(), io.StringIO()
    command = [script(name), *map(str, arguments)]
    with mock.patch.object(sys, "argv", command), restored_signals():
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                runpy.run_path(command[0], run_name="__main__")
            except SystemExit as end:
                status = int(end.code or 0)
    return Outcome(status, out.getvalue(), err.getvalue())


def run_well(name: str, *arguments: Any) -> Outcome:
    """Like `run_program`, for a run that must succeed."""
    done = run_program(name, *arguments)
    assert done.status == 0, done.stderr + done.stdout
    return done
