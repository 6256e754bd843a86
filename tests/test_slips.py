"""A storage URL at a wrong place of the command line or the recipe: its password is not printed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import REPOSITORY
from programs import Outcome, run_program

QUICKSTART = REPOSITORY / "recipes" / "quickstart.yaml"
PASSWORDS = [
    "s3cret-4711",
    "s3@cr/et-4711",
    "s3%40cr%2Fet-4711",
    "gehe1mé-wörter",
    "two words-47",
    "quo\"te's-47",
    "hunterly",
]
URL = "postgresql+psycopg://me:{}@127.0.0.1:1/studies"
SLIPS = [
    ("search", ["{recipe}", "search.storag={url}"], "unknown key"),
    ("search", ["{recipe}", "search.storage.url={url}"], "search.storage"),
    ("search", ["{recipe}", "storage={url}"], "storage: unknown key"),
    ("search", ["{recipe}", "search.storage", "{url}"], "key.path=value"),
    ("search", ["{recipe}", "search.storage:{url}"], "key.path=value"),
    ("search", ["{recipe}", "--storag", "{url}"], "storage"),
    ("search", ["{recipe}", "--store={url}"], "--store"),
    ("search", ["{recipe}", "--storage", "{url}", "--debug"], "leave out --debug"),
    ("search", ["{recipe}", "--storage={url}", "--storage={url}", "--debug"], "--debug"),
    ("search", ["{recipe}", "--n_trials", "{url}"], "invalid int value"),
    ("search", ["{recipe}", "--study_name", "{url}"], "search.study_name: must match pattern"),
    ("search", ["{url}"], "cannot be read"),
    ("search", ["{recipe}", "{url}"], "key.path=value"),
    ("search", ["{recipe}", "search.sampler={url}"], "search.sampler"),
    ("search", ["{recipe}", "search.sampler.name={url}"], "must be one of"),
    ("search", ["{recipe}", "model.name={url}"], "model"),
    ("search", ["{recipe}", "data.train={url}"], "does not exist"),
    ("search", ["{recipe}", "space.{url}.low=1"], "space"),
    ("train", ["{recipe}", "--storage", "{url}"], "unrecognized arguments"),
    ("train", ["{recipe}", "--trial", "{url}"], "invalid int value"),
    ("train", ["{recipe}", "--best_params", "{url}"], "there is no file"),
    ("predict", ["{recipe}", "--storage={url}"], "--storage"),
    ("predict", ["{recipe}", "--input", "{url}"], ""),
    ("inspect_data", ["--storage", "{url}", "{recipe}"], "unrecognized arguments"),
    ("simulate_workers", ["--storage", "{url}"], "unrecognized arguments"),
]


def shown_by(program: str, words: list[str], url: str, recipe: Path = QUICKSTART) -> Outcome:
    return run_program(program, *(w.replace("{url}", url).format(recipe=recipe) for w in words))


def is_shown(password: str, done: Outcome) -> bool:
    printed = done.stdout + done.stderr
    return any(form in unquote(printed) for form in (password, unquote(password)))


@pytest.mark.parametrize(("program", "words", "message"), SLIPS)
def test_a_slip_with_the_url_is_explained_without_its_password(
    program: str, words: list[str], message: str
) -> None:
    done = shown_by(program, words, URL.format("s3@cr/et-4711"))
    assert done.status == 2, done.stderr
    assert message in done.stderr
    assert not is_shown("s3@cr/et-4711", done), done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("password", PASSWORDS)
def test_every_password_is_hidden(password: str) -> None:
    for words in (["{recipe}", "search.storag={url}"], ["{recipe}", "--store", "{url}"]):
        done = shown_by("search", words, URL.format(password))
        assert done.status == 2 and not is_shown(password, done), done.stderr


FORMS = [
    "postgresql+psycopg://me@127.0.0.1:1/studies?password=s3cret-4711",
    "postgresql+psycopg://127.0.0.1:1/studies?user=me&pasword=s3cret-4711",
    "postgresql+nodriver://me:s3cret-4711@127.0.0.1:1/studies",
    "postgresql+psycopg://me:s3cret-4711/studies",
    "postgresql+psycopg:me:s3cret-4711@127.0.0.1/studies",
    "me:s3cret-4711@127.0.0.1/studies",
    "host=127.0.0.1 user=me password=s3cret-4711",
]


@pytest.mark.parametrize("url", FORMS)
@pytest.mark.parametrize("words", [["{recipe}", "search.storag={url}"], ["{recipe}", "--x={url}"]])
def test_a_url_that_is_malformed_itself_keeps_its_password(url: str, words: list[str]) -> None:
    done = shown_by("search", words, url)
    assert done.status == 2 and not is_shown("s3cret-4711", done), done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "search: {{storag: '{url}'}}",
        "storage: {url}",
        "search: {url}",
        "{url}",
        "search: {{storage: {url}",
        "search:\n  storage: {url}\n bad: indentation",
        "search: {{storage: [{url}]}}",
        "search: {{storage: {{url: {url}, password: s3cret-4711}}}}",
        "search: {{pasword: s3cret-4711}}",
    ],
)
def test_a_slip_in_the_file_keeps_the_password(text: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text.format(url=URL.format("s3cret-4711")), encoding="utf-8")
    done = run_program("search", path)
    assert done.status == 2 and not is_shown("s3cret-4711", done), done.stderr


def test_a_password_alone_and_one_of_the_environment_are_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_canary0815")
    monkeypatch.setenv("PGPASSWORD", "s3cret-4711")
    for word in ("hf_canary0815", "s3cret-4711"):
        assert not is_shown(word, run_program("search", QUICKSTART, f"training.hub_token={word}"))
        assert not is_shown(word, run_program("search", QUICKSTART, word))
    assert not is_shown("hunter2", run_program("search", QUICKSTART, "--password", "hunter2"))


def test_a_password_that_is_a_word_hides_nothing_else() -> None:
    for word in ("hpo", "a", "search", "1"):
        done = run_program("search", QUICKSTART, f"search.storag={URL.format(word)}", "--debug")
        assert done.stderr.splitlines()[0].endswith("quickstart.yaml: 1 error found")
        assert "did you mean 'storage'?" in done.stderr and "search.storag:" in done.stderr
        assert "me:***@127.0.0.1:1/studies" in done.stderr
    assert "error: unrecognized arguments: --password" in (
        run_program("search", QUICKSTART, "--password", "e").stderr
        + run_program("search", QUICKSTART, "--password", "@").stderr
    )


PROGRAM = """
import logging, sys, threading, warnings
from hpo_summarize.cli import run

def main():
    import optuna
    print("out", sys.argv[1])
    print("\\U0001f600 \u00b1 0.1")
    print("error", sys.argv[1], file=sys.stderr)
    logging.getLogger("x").error(sys.argv[1])
    optuna.logging.set_verbosity(optuna.logging.INFO)
    optuna.logging.get_logger("optuna").warning(sys.argv[1])
    warnings.warn(sys.argv[1])
    def fail(): raise ValueError(sys.argv[1])
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    error = RuntimeError(f"cannot use {sys.argv[1]}, as cr/et-4711 is wrong")
    raise error from OSError(sys.argv[1])

run(main)
"""


@pytest.mark.slow
def test_prints_logs_warnings_and_tracebacks_hide_it_too() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, URL.format("s3@cr/et-4711")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 1 and "RuntimeError" in done.stderr
    assert "cr/et" not in done.stdout + done.stderr, done.stdout + done.stderr
    # What an encoding lacks is written as an escape, and ends nothing.
    assert done.stdout == f"out {URL.format('***')}\n\\U0001f600 \\xb1 0.1\n"
    assert done.stderr.count(URL.format("***")) == 7
