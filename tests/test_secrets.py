"""A password and a token, as canaries: a whole search writes and prints neither of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from final_models import write_recipe
from postgres import PASSWORD, Server, running_server
from search_process import SEARCH, end_of, start_search

from hpo_summarize.study.storage import build_storage

TOKEN = "hf_canary0815"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


def start(folder: Path, recipe: Path, storage: str) -> subprocess.Popen[bytes]:
    """Starts a search whose every file, temporary and cached ones too, lies in `folder`."""
    (folder / "tmp").mkdir(exist_ok=True)
    own = {"HF_TOKEN": TOKEN, "TMPDIR": str(folder / "tmp"), "HF_HOME": str(folder / "hub")}
    command = [sys.executable, str(SEARCH), str(recipe), "--storage", storage]
    with (folder / "log").open("ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **own}
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def files_with_secrets(folder: Path) -> list[Path]:
    secrets = (PASSWORD.encode(), TOKEN.encode())
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(secret in path.read_bytes() for secret in secrets)]


@pytest.mark.slow
def test_no_file_and_no_log_of_a_whole_search_holds_the_password_or_the_token(
    server: Server, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, checkpoint)
    url = f"{server.new_database('secrets')}?password={PASSWORD}"
    process = start(tmp_path, recipe, url)
    while not (found := list((tmp_path / "out").rglob("training_args.bin"))):
        assert process.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.01)
    # What is there in the middle of a trial only, and deleted at its end.
    process.send_signal(signal.SIGSTOP)
    assert found[0].exists()
    assert files_with_secrets(tmp_path) == []
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=180) == 0, (tmp_path / "log").read_text()
    assert files_with_secrets(tmp_path) == []
    # The search shows the URL, without its password.
    assert "tests:***@127.0.0.1" in (tmp_path / "log").read_text()
    assert "tests:***@127.0.0.1" in (tmp_path / "out" / "recipe.yaml").read_text()
    study = optuna.load_study(study_name="tiny", storage=build_storage(url))
    assert len(study.trials) == 2
    stored = f"{study.user_attrs} {study.trials}"
    assert PASSWORD not in stored and TOKEN not in stored
    study._storage._backend.engine.dispose()


def test_a_storage_that_refuses_the_password_does_not_give_it_away(
    server: Server, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, checkpoint)
    host = server.url().partition("@")[2]
    url = f"postgresql+psycopg://nobody@{host}?password={PASSWORD}"
    log = tmp_path / "log"
    assert end_of([start_search(log, str(recipe), "--storage", url)]) == [2], log.read_text()
    assert "password=***" in log.read_text()
    assert files_with_secrets(tmp_path) == []


def test_a_password_file_keeps_the_password_out_of_the_command_line(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = server.new_database("passfile").replace(f":{PASSWORD}@", "@")
    path, place = tmp_path / "pgpass", sqlalchemy.make_url(url)
    path.write_text(f"{place.host}:{place.port}:*:{place.username}:{PASSWORD}\n")
    path.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(path))
    storage = build_storage(url)
    optuna.create_study(study_name="s", storage=storage)
    assert optuna.get_all_study_names(storage) == ["s"]
    storage.engine.dispose()


def test_the_search_for_secrets_finds_them(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(b"\x80\x02" + TOKEN.encode())
    (tmp_path / "c").write_text(f"x{PASSWORD}y")
    assert len(files_with_secrets(tmp_path)) == 2
