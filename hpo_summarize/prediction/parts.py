"""The finished batches of a prediction, kept on disk until all of them are there."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hpo_summarize.decoding import Summaries
from hpo_summarize.files import claim, discard, owner_of

_CHUNK = 2**20  # Bytes read at once.


class Parts:
    """A folder with finished batches, each run and each process with a file of its own.

    A line is one batch, `{"batch": 3, "summaries": [...], "n_cut": 0}`. The last line of a process
    that was killed may be half of one; nothing is ever appended to it, and it is passed over.

    Args:
        folder: Folder beside the output; made by `claim`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own = folder / f"{uuid.uuid4().hex}.jsonl"

    def claim(self, identity: Mapping[str, Any]) -> bool:
        """Keeps the batches that belong to `identity`, and deletes those of anything else.

        Returns:
            Whether batches of something else were deleted.
        """
        text, owner = json.dumps(identity, sort_keys=True, indent=2), owner_of(self.folder)
        if owner == text:
            return False
        there = any(self.folder.glob("*.jsonl"))
        discard(self.folder, owner)
        claim(self.folder, text)
        return there

    def read(self) -> dict[int, Summaries]:
        """The summaries of every finished batch by its number."""
        found = {}
        for path in self.folder.glob("*.jsonl"):
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    part = json.loads(line)
                    found[part["batch"]] = Summaries(part["summaries"], part["n_cut"])
                except (ValueError, KeyError):
                    continue  # Half a line, what is behind the last one, or of an older version.
        return found

    def add(self, batch: int, summaries: Summaries) -> None:
        """Adds a finished batch; it is in the file when this returns."""
        part = {"batch": batch, "summaries": summaries.texts, "n_cut": summaries.n_cut}
        line = json.dumps(part)
        with self._own.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")

    def remove(self) -> None:
        """Deletes the folder."""
        discard(self.folder, owner_of(self.folder))


def digest_of_files(folder: Path) -> str:
    """A digest of the names and the contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def digest_of_texts(texts: Iterable[str]) -> str:
    """A digest of texts in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8") + b"\0")
    return digest.hexdigest()
