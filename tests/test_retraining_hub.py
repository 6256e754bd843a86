"""train.push_to_hub, with a server on this machine that answers like the Hub."""

from __future__ import annotations

import base64
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
from final_models import search
from programs import script

TOKEN = "hf_only_for_this_test"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Takes new repositories and commits from the holder of the token."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._send(401, {"error": "Invalid username or password."})
        path = self.path.partition("?")[0]
        server: Any = self.server
        address = f"http://127.0.0.1:{server.server_port}/me/model"
        if path == "/api/repos/create":
            server.created.append(json.loads(body))
            return self._send(200, {"url": address, "name": "me/model"})
        if path == "/api/validate-yaml":  # The head of the model card.
            return self._send(200, {"errors": [], "warnings": []})
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            how = {"uploadMode": "regular", "shouldIgnore": False}
            kinds = [{"path": file["path"], **how} for file in files]
            return self._send(200, {"files": kinds})
        if "/commit/" in path and not server.full:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{address}/commit/{COMMIT}"
            return self._send(200, {"commitUrl": url, "commitOid": COMMIT})
        return self._send(403, {"error": "Storage limit reached"})

    def do_GET(self) -> None:
        """Everybody may read the repository, which exists already."""
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.path.endswith("/auth-check/write") and not allowed:
            return self._send(403, {"error": "No right to write"})
        self._send(200, {"id": "me/model", "sha": COMMIT, "siblings": []})

    def _send(self, status: int, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.files, server.full = [], {}, False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


PUSH = """
import sys
from pathlib import Path
from hpo_summarize.errors import HpoError
from hpo_summarize.final_model.export import make_repository, upload
try:
    make_repository("me/model")
    print(upload(Path(sys.argv[1]), "me/model"))
except HpoError as error:
    print(error.exit_status, error)
"""


def run(hub: Any, home: Path, token: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own: the Hub's address is fixed when it starts."""
    hidden = ("HF_", "HUGGING", "http", "HTTP", "all_proxy", "ALL_PROXY", "TRANSFORMERS_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    url = f"http://127.0.0.1:{hub.server_port}"
    settings = {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, *command],
        env={**kept, **settings, "HF_TOKEN": token},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_the_final_model_is_uploaded_as_it_is_into_a_private_repository(
    hub: Any, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = search(tmp_path / "s", checkpoint)
    command = [script("train"), str(recipe), "train.push_to_hub=me/model"]
    done = run(hub, tmp_path / "home", TOKEN, *command)
    assert done.returncode == 0, done.stderr
    assert "uploaded to me/model" in done.stdout
    assert hub.created[0]["name"] == "model" and hub.created[0]["organization"] == "me"
    assert hub.created[0]["visibility"] == "private"
    model = tmp_path / "s" / "out" / "model"
    files = {path.name: path.read_bytes() for path in model.iterdir()}
    assert hub.files == files and {"model.safetensors", "README.md"} <= files.keys()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in path.read_bytes() for path in written)


@pytest.mark.slow
def test_a_wrong_token_is_found_before_the_training_and_a_failed_upload_names_the_folder(
    hub: Any, checkpoint: Path, tmp_path: Path
) -> None:
    command = ["-c", PUSH, str(checkpoint)]
    refused = run(hub, tmp_path, "hf_wrong", *command).stdout
    assert refused.startswith("2 train.push_to_hub: the Hub does not let 'me/model' be written")
    assert "HF_TOKEN" in refused and "hf_wrong" not in refused
    hub.full = True
    failed = run(hub, tmp_path, TOKEN, *command).stdout
    assert failed.startswith(f"1 the model is in {checkpoint}, but was not uploaded to 'me/model'")
    assert f"hf upload me/model {checkpoint}" in failed
