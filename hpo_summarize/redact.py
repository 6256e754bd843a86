"""Hides passwords and tokens in everything that is shown or written."""

from __future__ import annotations

import html
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TextIO, cast
from urllib.parse import quote, quote_plus, unquote, unquote_plus

HIDDEN = "***"

# Keys of a query whose values may be shown; a misspelt password key is none of them.
_HARMLESS_KEYS = set(
    """application_name charset client_encoding connect_timeout host keepalives keepalives_count
    keepalives_idle keepalives_interval mode port sslmode target_session_attrs timeout uri
    user""".split()
)
_SECRET_KEY = re.compile(
    r"pas+w|^pass$|passphrase|pwd|secret|sslkey|api_?key|(^|hub_|hf_|access_|auth_)token$"
)
_SECRET_VARIABLE = re.compile(r"(TOKEN|PASSWORD|PASSWD|_PWD|SECRET|API_KEY)$")
# Up to the last @ before the next URL: a password that was not URL-encoded may itself hold @, / or
# blanks. Digits before a / are a port.
_USER_PASSWORD = re.compile(r"(://[^:/\s@]*:)(?!\d+(?:[/?\s'\"]|$))(?:(?!://).)*@")
# The value ends at & or white space; what closes a quotation round the URL is left outside.
_QUERY_FIELD = re.compile(r"""(?<=[?&;])([^=&;?\s]+)=([^&\s]*?)(?=["')\]},.:;]*(?:[&\s]|$))""")
_STORAGE = re.compile(r"(?<!\bhttp)(?<!\bhttps)(?<!\bhf)://")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")

# Where a password stands in a text that a user gives: in a URL, of which the first @ or the last
# may end it; in a URL without its scheme; in one without its host; behind a key.
_GIVEN = [
    re.compile(r":(?://)?[^:/\s@]*:(?P<password>(?!/|.*://).+)(?P<end>@)"),
    re.compile(r"(?:^|[\s=:/'\"])[^:/\s@=]+:(?P<password>(?!\S*://)[^@\s/][^@\s]*)(?P<end>@)"),
    re.compile(r"://[^:/\s@]*:(?P<password>[^/\s@'\"]*[^/\s@'\"\d][^/\s@'\"]*)(?P<end>/)"),
]
_GIVEN_BY_KEY = re.compile(r"""(^|[^\w.%-])([\w.%-]+)['"]?\s*[=:]\s*['"]?([^\s'",}&]+)""")
_NO_SECRET = {"null", "none", "true", "false", HIDDEN}

# A short word, and one of one kind of character, may stand anywhere in a message: it is hidden
# within a URL only.
_TELLING, _LONG = 6, 12
_SHORTEST = 3  # What is shorter is hidden in no text.
_DEEPEST = 20  # Levels of lists and mappings that are looked through.

_known: dict[str, str] = {}  # From each known secret to what is shown in its place.
_any_known: re.Pattern[str] | None = None


def redact_url(text: str) -> str:
    """Hides passwords and tokens in a URL, or in any text.

    Hidden is the password of a URL, in `user:password@` and in `?password=` alike, a token of the
    Hub, and what `remember_secrets` has found. In doubt more is hidden than needed: of the query of
    a storage only the values of a few keys that are known to be harmless are left.

    Args:
        text: A storage URL, or a text; the query's keys in any case and URL-encoded or not.

    Returns:
        The same text with `***` in the place of each secret.

    Example:
        >>> redact_url("postgresql+psycopg://me:secret@db/studies?sslpassword=top&timeout=3")
        'postgresql+psycopg://me:***@db/studies?sslpassword=***&timeout=3'
    """
    is_storage = _STORAGE.search(text) is not None

    def hide(field: re.Match[str]) -> str:
        key = unquote_plus(field[1]).strip().lower()
        shown = key in _HARMLESS_KEYS or not (is_storage or _SECRET_KEY.search(key))
        return field[0] if shown else f"{field[1]}={HIDDEN}"

    text = _QUERY_FIELD.sub(hide, _USER_PASSWORD.sub(rf"\g<1>{HIDDEN}@", text))
    text = _HUB_TOKEN.sub(HIDDEN, text)
    return text if _any_known is None else _any_known.sub(lambda found: _known[found[0]], text)


def remember_secrets(given: Any) -> None:
    """Finds the passwords in what a user has given, so that `redact_url` hides them anywhere.

    A library may show a part of a URL, and a message something that should have been a URL.

    Args:
        given: A text, or mappings and lists with texts in them.
    """
    for line in _lines(given):
        for pattern in _GIVEN:
            for found in pattern.finditer(line):
                password, end = found["password"], found["end"]
                _remember(f":{password}{end}", f":{HIDDEN}{end}")
                # A library may cut it at a character that should have been URL-encoded.
                for part in (password, *re.split("[@:/]", password)):
                    if _is_telling(part):
                        _remember(part)
        for before, key, value in _GIVEN_BY_KEY.findall(line):
            if _SECRET_KEY.search(unquote_plus(key).lower().rpartition(".")[2]):
                if before not in ("?", "&") or _is_telling(value):
                    _remember(value)


def remember_process_secrets(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """`remember_secrets` for a command line and its environment variables."""
    remember_secrets(arguments)
    for option, value in zip(arguments, arguments[1:], strict=False):
        if option.startswith("-") and _SECRET_KEY.search(option.lower().strip("-")):
            _remember(value)
    for name, value in environment.items():
        if "://" in value:
            remember_secrets(value)
        elif _SECRET_VARIABLE.search(name) and _is_telling(value):
            _remember(value)


def _lines(given: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(given, str):
        yield from given.splitlines()
    elif depth > _DEEPEST:
        return
    elif isinstance(given, Mapping):
        for key, value in given.items():
            yield from (f"{key}={line}" for line in _lines(value, depth + 1))
    elif isinstance(given, Sequence) and not isinstance(given, bytes):
        for value in given:
            yield from _lines(value, depth + 1)


def _is_telling(value: str) -> bool:
    mixed = not (value.isalpha() or value.isdigit())
    return len(value) >= _LONG or (len(value) >= _TELLING and mixed)


def _remember(secret: str, shown: str = HIDDEN) -> None:
    """Puts `shown` in the place of a text from now on."""
    global _any_known
    forms = _forms(secret)
    is_secret = len(secret) >= _SHORTEST and secret.lower() not in _NO_SECRET
    if is_secret and not forms <= _known.keys():
        _known.update(dict.fromkeys(forms, shown))
        longest_first = sorted(_known, key=len, reverse=True)
        _any_known = re.compile("|".join(map(_within_text, longest_first)))


def _within_text(secret: str) -> str:
    """A pattern for a secret; one that is a plain word is no part of a longer word."""
    is_word = secret.isalnum() and not _is_telling(secret)
    return rf"(?<!\w){secret}(?!\w)" if is_word else re.escape(secret)


def _forms(secret: str) -> set[str]:
    """A secret as it stands in a URL, in Python, JSON and HTML."""
    plain = unquote(secret)
    encoded = {quote(plain, safe=":@/"), quote(plain, safe=""), quote_plus(plain)}
    encoded.add(unquote_plus(secret))
    texts = {secret, plain}
    written = {form for text in texts for form in (repr(text)[1:-1], json.dumps(text)[1:-1])}
    return texts | encoded | written | {html.escape(text) for text in texts}


class RedactedStream:
    """A text stream that hides secrets in what is written to it.

    Characters that its encoding lacks are written as escapes, since a message must not end a run,
    and every line is written at once, since who reads a log of hours wants its last line.

    Args:
        stream: Where the text goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)

    def write(self, text: str) -> int:
        """Writes one piece of text; a secret must not be split between two."""
        self._stream.write(redact_url(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes several pieces."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redact_output() -> None:
    """Lets everything that this process prints from now on pass `redact_url`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, cast(TextIO, RedactedStream(stream)))
