from __future__ import annotations

import io

import pytest
from recipe_files import BASE, load

from hpo_summarize.config.loader import dump_recipe
from hpo_summarize.redact import RedactedStream, redact_url, remember_process_secrets


@pytest.mark.parametrize(
    "url, shown",
    [
        ("postgresql+psycopg://me:s3cret@db:5432/x", "postgresql+psycopg://me:***@db:5432/x"),
        ("redis://:s3cret@db/0", "redis://:***@db/0"),
        ("mysql://me:s3%40c/ret@db/x", "mysql://me:***@db/x"),
        ("postgresql://me:s3@cret@db/x", "postgresql://me:***@db/x"),
        ("postgresql://me:s3 cret@db/x", "postgresql://me:***@db/x"),
        ("postgresql://db/x?user=me&password=s3cret", "postgresql://db/x?user=me&password=***"),
        ("postgresql://db/x?password=s3#cret&port=1", "postgresql://db/x?password=***&port=1"),
        ("postgresql://db/x?PassWord=s3cret", "postgresql://db/x?PassWord=***"),
        ("postgresql://db/x?p%61ssword=s3cret", "postgresql://db/x?p%61ssword=***"),
        ("postgresql://db/x?port=1&sslpassword=s3cret", "postgresql://db/x?port=1&sslpassword=***"),
        ("mysql://db/x?passwd=s3cret;a=1", "mysql://db/x?passwd=***"),
        ("postgresql://db/x?pasword=s3cret&user=me", "postgresql://db/x?pasword=***&user=me"),
        ("postgresql://db/x?sslkey=s3cret", "postgresql://db/x?sslkey=***"),
        ("postgresql://me:s3cret@db/x?password=cret", "postgresql://me:***@db/x?password=***"),
        ("mysql://db/x?pw=s3cret&ssl_key=s3cret", "mysql://db/x?pw=***&ssl_key=***"),
        ("postgresql:me:s3cret@db/x", "postgresql:me:***@db/x"),
        ("postgresql://me:s3cret/x", "postgresql://me:***/x"),
        ("host=db user=me password=s3cret", "host=db user=me password=***"),
        ("mysql://db/x?user=me;password=s3cret", "mysql://db/x?user=me;password=***"),
        ('{"user":"me","password":"s3cret"}', '{"user":"me","password":"***"}'),
        ("{'user': 'me', 'password': 's3cret'}", "{'user': 'me', 'password': '***'}"),
    ],
)
def test_the_password_of_a_url_is_hidden_in_every_form(url: str, shown: str) -> None:
    assert redact_url(url) == shown


def test_what_stands_between_two_urls_is_left_alone() -> None:
    text = "postgresql://me:s3@cret@db/x is refused; write postgresql://user@host/database, me@db"
    assert redact_url(text) == text.replace("s3@cret", "***")


def test_a_password_within_a_text_is_hidden_and_the_text_stays() -> None:
    text = "cannot reach 'postgresql://me:s3cret@db/x?password=s3cret': refused\nsecond line"
    assert redact_url(text) == (
        "cannot reach 'postgresql://me:***@db/x?password=***': refused\nsecond line"
    )


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///out/study.db",
        "postgresql://me@db:5432/x?user=me&connect_timeout=3",
        "postgresql://db/x?sslmode=require&application_name=hpo&target_session_attrs=any",
        "one line with a://host:80\nand another with me@example.org",
        "the storage postgresql://db:5432/x cannot be used; write postgresql://user@host/database",
        "out of memory",
        "eos_token=</s> max_new_tokens=64 passed: 12:30 me@example.org",
    ],
)
def test_a_text_without_a_password_is_left_alone(text: str) -> None:
    assert redact_url(text) == text


def test_a_url_that_yaml_would_fold_is_written_without_its_password() -> None:
    url = f"postgresql+psycopg://me:{'s3cret ' * 20}end@db/studies"
    text = dump_recipe(load(BASE, f"search.storage={url}", f"search.warm_start={url}"))
    assert "s3cret" not in text
    assert text.count("postgresql+psycopg://me:***@db/studies") == 2


@pytest.mark.parametrize(
    ("encoding", "shown"), [("cp949", "\\U0001f600 ± 한"), ("utf-8", "😀 ± 한")]
)
def test_a_character_that_the_encoding_lacks_is_written_as_an_escape(
    encoding: str, shown: str
) -> None:
    raw = io.BytesIO()
    stream = RedactedStream(io.TextIOWrapper(raw, encoding=encoding))
    stream.writelines(["😀 ±", " 한\n"])
    assert raw.getvalue().decode(encoding) == f"{shown}\n"  # Without a flush.


def test_a_query_in_a_text_that_holds_no_storage_stays_as_it_is() -> None:
    text = "#Person1#: see https://example.org/watch?v=abc&t=3 &c=4"
    assert redact_url(text) == text
    assert redact_url(f"{text}&password=s3cret-4711") == f"{text}&password=***"


def test_secret_variables_are_hidden_anywhere_and_other_variables_are_not() -> None:
    secrets = {"SOME_TOKEN": "t0ken-0815", "PGPASSWORD": "pgpass-0815", "S_ACCESS_KEY": "key-0815"}
    proxy = {"HTTPS_PROXY": "http://me:proxy-0815@host:80", "PWD": "/home/me/folder-0815"}
    remember_process_secrets(["--password", "option-0815"], {**secrets, **proxy})
    assert redact_url("t0ken-0815 pgpass-0815 key-0815 proxy-0815 option-0815") == " ".join(
        ["***"] * 5
    )
    assert redact_url("in /home/me/folder-0815") == "in /home/me/folder-0815"


def test_what_only_looks_like_a_secret_option_or_is_a_part_of_a_path_is_not_hidden() -> None:
    arguments = ["--output_dir", "outputs/bypass", "data.train=own-4711.csv"]
    remember_process_secrets(arguments, {"TLS_KEY": "/work/project-4711/server.key"})
    text = "data.train=own-4711.csv in /work/project-4711/out"
    assert redact_url(text) == text
    assert redact_url("read /work/project-4711/server.key") == "read ***"
