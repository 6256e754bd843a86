"""Recipes as the tests of recipes write them down."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from hpo_summarize.config.loader import load_recipe
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import RecipeError

SHIPPED = sorted((Path(__file__).resolve().parent.parent / "recipes").glob("*.yaml"))
BASE = "model: {name: a/b}\ndata: {train: t.csv}\noutput_dir: out\n"


def load(text: str | bytes, *overrides: str, **options: Any) -> Recipe:
    """Loads a recipe from its text, by way of a file `mine.yaml`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mine.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_recipe(path, overrides, **options)


def messages(error: pytest.ExceptionInfo[RecipeError]) -> dict[str, str]:
    """The messages of a refused recipe by key."""
    assert error.value.exit_status == 2
    return {problem.key: problem.message for problem in error.value.problems}


def as_content(text: str) -> Any:
    """The plain content of YAML text."""
    return YAML(typ="safe", pure=True).load(text)
