"""Hides passwords in storage URLs before they are shown or written."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

HIDDEN = "***"

_SECRET_KEYS = {"password", "sslpassword", "passwd", "pwd"}
# Up to the last @ of the line: a password that was not URL-encoded may itself hold @, / or blanks.
_USER_PASSWORD = re.compile(r"(://[^:/\s@]*:).*@")
# The value ends at & or white space; what closes a quotation round the URL is left outside.
_QUERY_FIELD = re.compile(r"""(?<=[?&;])([^=&;?\s]+)=([^&\s]*?)(?=["')\]},.:;]*(?:[&\s]|$))""")


def redact_url(url: str) -> str:
    """Hides the password of a URL, in `user:password@` and in `?password=` alike.

    Works on a URL and on any text that has URLs in it. In doubt more is hidden than needed: of
    `http://host:80/me@home` nothing between the port and the @ is left.

    Args:
        url: A storage URL, or a text; the query's keys in any case and URL-encoded or not.

    Returns:
        The same text with `***` in the place of each password.

    Example:
        >>> redact_url("postgresql+psycopg://me:secret@db/studies?sslpassword=top&timeout=3")
        'postgresql+psycopg://me:***@db/studies?sslpassword=***&timeout=3'
    """
    return _QUERY_FIELD.sub(_hide_secret, _USER_PASSWORD.sub(rf"\g<1>{HIDDEN}@", url))


def _hide_secret(field: re.Match[str]) -> str:
    key = field.group(1)
    return f"{key}={HIDDEN}" if unquote_plus(key).strip().lower() in _SECRET_KEYS else field.group()
