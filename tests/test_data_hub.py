"""Data sets on the Hub, read from a server on this machine that answers like it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_only_for_this_test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "README.md": "---\nconfigs:\n- config_name: main\n  data_files:\n"
    "  - {split: train, path: a/t.csv}\n  - {split: dev, path: a/d.csv}\n"
    "- config_name: other\n  data_files: b.jsonl\n---\n",
    "a/t.csv": "id,dialogue,summary\n007,A: NA,NA\n008,B: hi,2\n",
    "a/d.csv": "id,dialogue,summary\n009,C: bye,None\n",
    "b.jsonl": '{"dialogue": ["A: one", "B: two"], "summary": "s"}\n',
    "big.bin": "not asked for",
}


class Hub(BaseHTTPRequestHandler):
    """Two data sets with the same files: me/open, and me/closed for the holder of the token."""

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.server.paths.append(self.path)  # type: ignore[attr-defined]
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        path = self.path.partition("?")[0]
        if "me/open" not in path and not ("me/closed" in path and allowed):
            return self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/datasets/") and "/revision/" in path:
            return self._send(*self._info(path))
        if path.startswith("/api/datasets/") and "/tree/" in path:
            tree = [
                {"type": "file", "path": name, "size": len(text), "oid": COMMIT}
                for name, text in FILES.items()
            ]
            return self._send(200, json.dumps(tree).encode(), {})
        name = path.partition("/resolve/")[2].partition("/")[2]
        if name not in FILES:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = FILES[name].encode()
        tag = hashlib.sha1(content).hexdigest()
        return self._send(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})

    def _info(self, path: str) -> tuple[int, bytes, dict[str, str]]:
        if path.rpartition("/revision/")[2] not in ("main", "v1", COMMIT):
            return 404, b"", {"X-Error-Code": "RevisionNotFound"}
        siblings = [{"rfilename": name} for name in FILES]
        return 200, json.dumps({"id": "me/x", "sha": COMMIT, "siblings": siblings}).encode(), {}

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.paths = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


READ = """
import json, sys
from hpo_summarize.data.splits import load_splits
from hpo_summarize.errors import DataError
from hpo_summarize.config.schema import DataSection
for keys in json.load(sys.stdin):
    try:
        parts = load_splits(DataSection(**keys))
        print(json.dumps([[p.ids, p.dialogues, p.references] for p in parts]))
    except DataError as error:
        print(json.dumps(str(error)))
"""


def read(url: str, home: Path, *sections: dict[str, Any], **settings: str) -> list[Any]:
    """Reads data sections in a process of its own: the Hub's address is fixed when it starts."""
    hidden = ("HF_", "HUGGING", "http", "HTTP", "all_proxy", "ALL_PROXY", "TRANSFORMERS_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    env = kept | {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **settings}
    command = [sys.executable, "-c", READ]
    done = subprocess.run(
        command, input=json.dumps(sections), env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_data_set_on_the_hub_is_read_and_stays_readable_without_it(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{hub.server_port}"
    wanted = [
        [["007", "008"], ["A: NA", "B: hi"], [["NA"], ["2"]]],
        [["009"], ["C: bye"], [["None"]]],
    ]
    by_id = {"name": "me/open", "config": "main", "revision": "v1"}
    by_url = {"name": "hf://datasets/me/open@v1", "config": "main"}
    file = {"train": "hf://datasets/me/open/a/t.csv", "validation": "hf://datasets/me/open/a/d.csv"}
    closed = {"name": "me/closed", "config": "main"}
    absent = [{**by_id, "revision": "v2"}, {**by_id, "config": "none"}, closed]
    *found, revision, config, refused = read(url, tmp_path / "home", by_id, by_url, file, *absent)
    assert found == [wanted] * 3
    assert "me/open: there is no such folder, and it cannot be downloaded from the Hub" in revision
    assert "data.config picks a configuration" in config
    assert "set HF_TOKEN to a token if it is private" in refused
    assert not any("big.bin" in path for path in hub.paths)  # type: ignore[attr-defined]
    home, asked = tmp_path / "home", len(hub.paths)  # type: ignore[attr-defined]
    assert read(url, home, by_id, HF_HUB_OFFLINE="1") == [wanted]
    assert len(hub.paths) == asked  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_private_data_set_is_read_with_the_token_of_the_environment(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{hub.server_port}"
    section = {"name": "me/closed", "config": "main"}
    ((train, validation),) = read(url, tmp_path / "home", section, HF_TOKEN=TOKEN)
    assert (train[0], validation[0]) == (["007", "008"], ["009"])
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)
