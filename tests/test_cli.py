"""The command lines of the programs that take a recipe."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from final_models import write_recipe
from programs import Outcome, run_program, run_well, script

from hpo_summarize.cli import command_line

PROGRAMS = ["search", "train", "predict", "inspect_data"]


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2)])
def test_options_may_stand_before_and_behind_the_recipe_and_its_changes(
    program: str, order: tuple[int, ...]
) -> None:
    words = [REPOSITORY / "recipes" / "quickstart.yaml", "--debug", "data.no_such_key=3"]
    done = run_program(program, *(words[place] for place in order))
    assert done.status == 2
    assert "1 error found" in done.stderr and "data.no_such_key" in done.stderr


def run_line(done: Outcome, word: str) -> Outcome:
    """Runs the command that stands behind a word at the beginning of a printed line."""
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"{word} ")]
    python, path, *words = shlex.split(line.removeprefix(word))
    assert Path(path) == Path(script(Path(path).stem))
    assert python in ("python", sys.executable)
    return run_well(Path(path).stem, *words)


@pytest.mark.slow
def test_each_program_ends_with_the_commands_that_go_on_with_its_results(
    checkpoint: Path, tmp_path: Path
) -> None:
    recipe, out = write_recipe(tmp_path / "a b", checkpoint), tmp_path / "o u t"
    changes = ["search.n_trials=1", "training.num_epochs=1", "--output_dir", out]
    searched = run_well("search", recipe, *changes)
    trained = run_line(searched, "next")
    assert (out / "model" / "config.json").is_file()
    for done, word in ((searched, "then"), (trained, "next")):
        run_line(done, word)
        (out / "predictions.csv").unlink()
    storage = f"search.storage=sqlite:///{out / 'study.db'}?password=s3cret-4711"
    trained = run_well("train", recipe, *changes, "train.seeds=[7]", "data.max_rows=6", storage)
    assert "s3cret" not in trained.stdout and "train.seeds" in trained.stdout.splitlines()[-1]
    run_line(trained, "next")
    assert len((out / "predictions.csv").read_text().splitlines()) == 7
    no_test = run_well("search", recipe, *changes, "data.test=null")
    assert no_test.stdout.splitlines()[-1].endswith("--input DIALOGUES.csv")


def test_the_python_of_a_command_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    assert command_line("train", "r.yaml").startswith(f"{sys.executable} ")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    assert command_line("train", "r.yaml").startswith("python ")
