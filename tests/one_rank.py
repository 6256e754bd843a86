"""Runs a script, with one more argument on one process of its group.

one_rank.py RANK ARGUMENT SCRIPT ARGUMENTS...
"""

from __future__ import annotations

import os
import runpy
import sys

if __name__ == "__main__":
    rank, extra, *command = sys.argv[1:]
    sys.argv = [*command, extra] if os.environ["RANK"] == rank else command
    runpy.run_path(command[0], run_name="__main__")
