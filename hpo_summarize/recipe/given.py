"""A recipe in whatever form a caller in Python has it, with the caller's own settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpo_summarize.recipe.load import load_recipe, parse_recipe
from hpo_summarize.recipe.sections import Recipe


def as_recipe(config: Recipe | str | Path | Mapping[str, Any], needs_data: bool = True) -> Recipe:
    """The recipe in a file or a mapping, or the one that is given.

    Args:
        config: A recipe, the path of one, or its content.
        needs_data: Whether the section `data` is required.

    Raises:
        RecipeError: It is wrong.
    """
    if isinstance(config, Recipe):
        return config
    if isinstance(config, str | Path):
        return load_recipe(config, needs_data=needs_data)
    return parse_recipe(config, needs_data=needs_data)


def with_settings(
    recipe: Recipe,
    search: Mapping[str, Any],
    output_dir: str | Path | None = None,
    needs_data: bool = True,
) -> Recipe:
    """The recipe with other values in the place of its own, checked again.

    Args:
        recipe: Left as it is.
        search: Keys of the section `search`; None keeps the recipe's value.
        output_dir: Output folder; None keeps the recipe's.
        needs_data: Whether the section `data` is required.

    Raises:
        RecipeError: A value is wrong.
    """
    content = recipe.model_dump(exclude_unset=True)
    content.setdefault("search", {}).update({k: v for k, v in search.items() if v is not None})
    if output_dir is not None:
        content["output_dir"] = str(output_dir)
    return parse_recipe(content, needs_data=needs_data)
