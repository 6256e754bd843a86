"""What can be said of a storage URL before anything is opened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy

from hpo_summarize.errors import Problem

_FORMS = (
    "write sqlite:///file.db, journal:///folder/file.log or "
    "postgresql+psycopg://user@host/database"
)


def storage_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """A URL that names no kind of storage, or one that is gone with the process."""
    url = parts.get("search", {}).get("storage")
    if isinstance(url, str) and not url.startswith("journal://") and (reason := _wrong_url(url)):
        yield Problem("search.storage", f"{reason}; {_FORMS}")


def _wrong_url(url: str) -> str | None:
    """Says what is wrong without the URL itself: its password may stand anywhere in it."""
    try:
        parsed = sqlalchemy.make_url(url)
        backend = parsed.get_backend_name()
        parsed.get_dialect()
    except sqlalchemy.exc.NoSuchModuleError:
        return f"there is no kind of database called '{parsed.drivername}'"
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "this is no URL of a storage"
    except ImportError:
        return None  # The driver is not installed; opening the storage says how to get it.
    in_memory = parsed.database in (None, "", ":memory:") or parsed.query.get("mode") == "memory"
    if backend == "sqlite" and in_memory:
        return "a database in memory ends with the process, and nothing could go on from there"
    return None
