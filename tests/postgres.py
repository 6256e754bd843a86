"""A PostgreSQL of the tests' own, started in a temporary folder and stopped afterwards."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "canary-4711"
_AS_ROOT: dict[str, Any] = {"user": "postgres", "group": "postgres", "extra_groups": []}


class Server:
    """A server on a free port of this machine that asks for a password.

    Args:
        folder: Where its data are; empty, and open to the user that it runs as.
        port: A free one.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        self._options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._port = port
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        _run(
            "initdb", "-D", self._data, "-U", "tests", "-A", "scram-sha-256", f"--pwfile={password}"
        )

    def start(self) -> None:
        """Returns when the server takes connections."""
        _run("pg_ctl", "-D", self._data, "-o", self._options, "-l", self._log, "-w", "start")

    def stop(self) -> None:
        """Cuts off every connection; nothing if it does not run."""
        if (self._data / "postmaster.pid").exists():
            _run("pg_ctl", "-D", self._data, "-m", "fast", "-w", "stop")

    def url(self, database: str = "postgres") -> str:
        """For Optuna, with the password."""
        return f"postgresql+psycopg://tests:{PASSWORD}@127.0.0.1:{self._port}/{database}"

    def new_database(self, name: str) -> str:
        """Makes an empty database and returns its URL."""
        import psycopg

        with psycopg.connect(self.url().replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')  # type: ignore[arg-type]
        return self.url(name)


def missing() -> str:
    """Why there can be no server here, or an empty text."""
    absent = [name for name in ("initdb", "pg_ctl", "postgres") if shutil.which(name) is None]
    if absent:
        return f"not on the PATH: {', '.join(absent)}"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    return ""


@contextmanager
def running_server() -> Iterator[Server]:
    """A server that runs, for the length of a `with` block; skips the test where there is none."""
    if reason := missing():
        pytest.skip(reason)
    # Not below pytest's own folder, which only the user that runs the tests may read.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        server = Server(folder, _free_port())
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _run(program: str, *arguments: Any) -> None:
    """Runs a program of PostgreSQL, which refuses to be run by root."""
    who = _AS_ROOT if os.geteuid() == 0 else {}
    command = [str(shutil.which(program)), *map(str, arguments)]
    # Its own session, so that a Ctrl-C meant for the tests does not reach the server first.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            command, stdout=output, stderr=output, cwd="/", start_new_session=True, **who
        )
        output.seek(0)
        assert done.returncode == 0, output.read().decode()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
