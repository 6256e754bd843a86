"""The commands of README.md, by name, so that CI and the tests run what a reader copies.

    python tests/readme_blocks.py NAME

prints the block under the comment `<!-- run: NAME -->`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
_BLOCK = re.compile(r"<!-- run: (?P<name>[a-z-]+) -->\n```(?P<kind>\w+)\n(?P<body>.*?)```", re.S)


def blocks() -> dict[str, str]:
    """The text of each named block."""
    text = README.read_text(encoding="utf-8")
    return {match["name"]: match["body"] for match in _BLOCK.finditer(text)}


if __name__ == "__main__":
    print(blocks()[sys.argv[1]], end="")
