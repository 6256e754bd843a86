"""Hides passwords and tokens in everything that is shown or written."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO, cast
from urllib.parse import unquote, unquote_plus

HIDDEN = "***"

_SECRET_KEY = re.compile(r"pass|pasw|pw|secret|ssl_?key|api_?key|(^|hub_|hf_|access_|auth_)token$")
_SECRET_VARIABLE = re.compile(r"(TOKEN|PASSWORD|PASSWD|_PWD|SECRET|_KEY)$")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_PASSWORDS = (
    # In a URL. Up to the last @ before the next URL, since a password that was not URL-encoded may
    # itself hold @, / or blanks. Digits before a / are a port.
    re.compile(r"(://[^:/\s@]*:)(?!\d+(?:[/?\s'\"]|$))(?P<secret>(?:(?!://).)*)(?=@)"),
    # In a URL without its scheme, and in one without its host.
    re.compile(r"([^\s:/@'\"]:)(?P<secret>[^\s:/@]+)(?=@)"),
    re.compile(r"(://[^\s:/@]*:)(?P<secret>[^\s/@'\"]*[^\s/@'\"\d][^\s/@'\"]*)(?=/)"),
)
# `key=value`, and `"key": "value"`. What closes a quotation round the value is no part of it.
_KEY = re.compile(r"""(?<![\w.%-])([\w.%-]+)(?:=|['"]\s*:\s*['"]?)""")
_VALUE = re.compile(r"""[^&\s]+?(?=["')\]},.:;]*(?:[&\s]|$))""")
# The same in YAML, or in a text that is cut off.
_GIVEN_KEY_VALUE = re.compile(r"""(?<![\w.%-])([\w.%-]+)['"]?\s*[=:]\s*['"]?(?=([^\s'",}&]+))""")

_known: set[str] = set()


def redact_url(text: str) -> str:
    """Hides passwords and tokens in a URL, or in any text.

    Hidden are the password of a URL, the value of a key like `password`, a token of the Hub, and
    what `remember_secrets` has found. In doubt more is hidden than needed.

    Args:
        text: A storage URL, or a text; keys in any case and URL-encoded or not.

    Returns:
        The same text with `***` instead of each secret.

    Example:
        >>> redact_url("postgresql+psycopg://me:secret@db/studies?sslpassword=top&timeout=3")
        'postgresql+psycopg://me:***@db/studies?sslpassword=***&timeout=3'
    """
    for pattern in _PASSWORDS:
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    text = _HUB_TOKEN.sub(HIDDEN, _hide_values(text))
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _hide_values(text: str) -> str:
    parts, end = [], 0
    for key in _KEY.finditer(text):
        if key.start() >= end and _is_secret_key(key[1]):
            if value := _VALUE.match(text, key.end()):
                parts += [text[end : key.end()], HIDDEN]
                end = value.end()
    return "".join([*parts, text[end:]])


def _is_secret_key(key: str) -> bool:
    return _SECRET_KEY.search(unquote_plus(key).lower().rpartition(".")[2].strip("-")) is not None


def remember_secrets(given: Any) -> None:
    """Finds the passwords in what a user has given, so that `redact_url` hides them anywhere.

    A library may show a part of a URL.

    Args:
        given: A text, or mappings and lists of texts.
    """
    text = str(given)
    for pattern in _PASSWORDS:
        for found in pattern.finditer(text):
            secret = found["secret"]
            # A library may cut it at a character that is not URL-encoded.
            _remember(secret, *secret.split("@"), *re.split("[@:/]", secret))
    for key, value in _GIVEN_KEY_VALUE.findall(text):
        if _is_secret_key(key):
            _remember(value)


def remember_process_secrets(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """`remember_secrets` for a command line and its environment variables."""
    remember_secrets("\n".join(arguments))
    for option, value in zip(arguments, arguments[1:], strict=False):
        if option.startswith("-") and _is_secret_key(option):
            _remember(value)
    for name, value in environment.items():
        remember_secrets(value)
        if _SECRET_VARIABLE.search(name):
            _remember(value)


def _remember(*secrets: str) -> None:
    """Hides secrets from now on.

    A short word may occur anywhere in a message, so it is hidden in a URL and behind its key only.
    """
    for secret in [*secrets, *map(unquote, secrets)]:
        is_word = secret.isalpha() or secret.isdigit()
        if len(secret) >= (12 if is_word else 6):
            _known.add(secret)


class RedactedStream:
    """A text stream that hides secrets in what is written to it.

    Characters that its encoding lacks are written as escapes, so that a message cannot end a run,
    and every line is flushed, so that the log of a running search is complete.

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
    """Hides secrets in everything that this process prints from now on."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not isinstance(stream, RedactedStream):
            setattr(sys, name, cast(TextIO, RedactedStream(stream)))
