"""The command lines of the programs that take a recipe."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY
from programs import run_program

PROGRAMS = ["search", "train", "predict", "inspect_data"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
def test_options_may_stand_before_and_behind_the_recipe_and_its_changes(
    program: str, order: tuple[int, ...]
) -> None:
    words = [REPOSITORY / "recipes" / "quickstart.yaml", "--debug", "data.no_such_key=3"]
    done = run_program(program, *(words[place] for place in order))
    assert done.status == 2
    assert "1 problem to mend" in done.stderr and "data.no_such_key" in done.stderr
