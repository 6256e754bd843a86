"""Storages that cannot be used, and the passwords that their URLs hold."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy
from conftest import REPOSITORY
from postgres import PASSWORD, running_server

from hpo_summarize.config.schema import SearchSection
from hpo_summarize.errors import StudyError
from hpo_summarize.study import storage
from hpo_summarize.study.run import open_study
from hpo_summarize.study.storage import default_storage_url

CANARY = "canary-0815"
AWAY = "127.0.0.1:1/study"
BAD_URLS = [
    ("nonsense", "Could not parse"),
    ("", "Could not parse"),
    ("mysqlx://u:{canary}@host/study", "Can't load plugin"),
    ("mysql+oursql://u:{canary}@host/study", "Can't load plugin"),
    ("mysql+pymysql://u:{canary}@host/study", "No module named 'pymysql'"),
    ("sqlite:///{folder}/missing/study.db", "unable to open"),
    ("sqlite:///{folder}/text.file", "file is not a database"),
    ("sqlite:////proc/study.db", "unable to open"),
    ("journal://{folder}/missing/study.log", "there is no folder"),
    ("journal://{folder}", "Is a directory"),
    ("journal:///proc/study.log", "study.log"),
    ("journal://{folder}/text.file", "Expecting value"),
    (f"postgresql+psycopg://u:{{canary}}@{AWAY}", "refused"),
    (f"postgresql+psycopg://u@{AWAY}?password={{canary}}", "refused"),
    (f"postgresql+psycopg://u:{{{{{{canary}}}}}}@{AWAY}", "refused"),
    (f"postgresql+psycopg://u:a/{{canary}}@{AWAY}", "refused"),
    (f"postgresql+psycopg://u:a@{{canary}}@{AWAY}", "must be written as %40"),
    (f"postgresql+psycopg://u:a@b/{{canary}}@{AWAY}", "must be written as %40"),
    (f"postgresql+psycopg://u:a\n{{canary}}@{AWAY}", "a line break"),
]


@pytest.mark.parametrize(("template", "reason"), BAD_URLS)
def test_a_storage_that_cannot_be_used_gives_a_short_error_at_once_and_no_password(
    template: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "text.file").write_text("no database\n" * 100)
    url = template.format(canary=CANARY, folder=tmp_path)
    before = time.monotonic()
    with pytest.raises(StudyError, match="cannot be used: .*Check the URL") as caught:
        open_study(SearchSection(), "study", url, ["maximize"])
    assert time.monotonic() - before < 5
    assert reason in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 3
    assert CANARY not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setattr(storage, "CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql+psycopg://127.0.0.1:{silent.getsockname()[1]}/study"
        with pytest.raises(StudyError, match="timeout"):
            open_study(SearchSection(), "study", url, ["maximize"])


RECIPE = """
model: {{name: {checkpoint}}}
data: {{train: {csv}, validation_fraction: 0.25, max_dialogue_tokens: 100, max_summary_tokens: 30}}
training: {{num_epochs: 1, batch_size: 8, learning_rate: 1e-3}}
generation: {{num_beams: 1, max_new_tokens: 8}}
search: {{n_trials: 2, pruner: null, storage: "{storage}"}}
space: {{learning_rate: {{type: float, low: 1e-4, high: 1e-2, log: true}}}}
output_dir: {output}
"""


@pytest.mark.slow
def test_the_password_of_the_database_is_in_nothing_that_a_search_prints_or_writes(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    with running_server() as server:
        url = f"{server.url()}?password={PASSWORD}"
        out, recipe = tmp_path / "out", tmp_path / "secret.yaml"
        fields = {"checkpoint": checkpoint, "csv": csv_path, "storage": url, "output": out}
        recipe.write_text(RECIPE.format(**fields))
        command = [sys.executable, str(REPOSITORY / "scripts" / "search.py"), str(recipe)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    assert b"***" in done.stdout
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert out / "report.html" in files
    assert b"***" in files[out / "recipe.yaml"]
    found = [str(path) for path, content in files.items() if PASSWORD.encode() in content]
    assert found == []
    assert PASSWORD.encode() not in done.stdout + done.stderr


def test_a_path_that_an_older_sqlalchemy_would_cut_off_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy 2.1 needs Python 3.11; what 2.0 makes of such a URL is imitated here."""

    def cut_off(url: str) -> sqlalchemy.URL:
        return sqlalchemy.URL.create("sqlite", url.removeprefix("sqlite:///").partition("%3F")[0])

    assert sqlalchemy.make_url(default_storage_url(tmp_path / "a?b")).database is not None
    monkeypatch.setattr(storage.sqlalchemy, "make_url", cut_off)
    with pytest.raises(StudyError, match="cannot open .*a\\?b.* choose another output_dir"):
        default_storage_url(tmp_path / "a?b")
