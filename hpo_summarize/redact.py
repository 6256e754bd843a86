"""Hides passwords in storage URLs before they are shown or written."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

HIDDEN = "***"

# Keys of a query whose values may be shown; a misspelt password key is none of them.
_HARMLESS_KEYS = set(
    """application_name charset client_encoding connect_timeout host keepalives keepalives_count
    keepalives_idle keepalives_interval mode port sslmode target_session_attrs timeout uri
    user""".split()
)
# Up to the last @ of the line: a password that was not URL-encoded may itself hold @, / or blanks.
_USER_PASSWORD = re.compile(r"(://[^:/\s@]*:).*@")
# The value ends at & or white space; what closes a quotation round the URL is left outside.
_QUERY_FIELD = re.compile(r"""(?<=[?&;])([^=&;?\s]+)=([^&\s]*?)(?=["')\]},.:;]*(?:[&\s]|$))""")


def redact_url(url: str) -> str:
    """Hides the password of a URL, in `user:password@` and in `?password=` alike.

    Works on a URL and on any text that has URLs in it. In doubt more is hidden than needed: of
    `http://host:80/me@home` nothing between the port and the @ is left, and of the query only the
    values of a few keys that are known to be harmless.

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
    harmless = unquote_plus(key).strip().lower() in _HARMLESS_KEYS
    return field.group() if harmless else f"{key}={HIDDEN}"
