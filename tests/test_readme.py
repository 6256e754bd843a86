"""README.md says what is there: its paths exist, and its commands are run here or by CI."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from readme_blocks import blocks

TEXT = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RUN_BY_CI = {"quickstart", "tests", "two-processes"}
RUN_HERE = {"own-data", "python"}


def test_every_shell_and_python_block_has_a_name_and_is_run() -> None:
    marked = set(blocks())
    assert marked == RUN_BY_CI | RUN_HERE
    assert len(re.findall(r"```(?:bash|python)\n", TEXT)) == len(marked)
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"readme_blocks.py {name}" in ci for name in RUN_BY_CI)


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\b(?:scripts|recipes|tests)/[\w./-]+\w", TEXT)))
)
def test_every_path_in_the_readme_exists(path: str) -> None:
    assert (REPOSITORY / path).exists()


@pytest.mark.parametrize("line", TEXT.split("## Files")[1].split("```")[1].splitlines()[2:])
def test_every_entry_of_the_file_tree_exists(line: str) -> None:
    if line.startswith("  "):
        names = re.findall(r"[\w]+\.py|^\s+\w+/", line)
        assert names
        assert all((REPOSITORY / "hpo_summarize" / name.strip()).exists() for name in names)


def test_the_commands_for_your_own_data_run(tmp_path: Path) -> None:
    for line in blocks()["own-data"].splitlines():
        program, *arguments = line.split()
        assert program == "python"
        done = subprocess.run(
            [sys.executable, *arguments, f"output_dir={tmp_path}"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").symlink_to(REPOSITORY / "recipes")
    monkeypatch.chdir(tmp_path)
    code = blocks()["python"].replace('"recipes/quickstart.yaml", ', "SMALL, ")
    exec(code, {"SMALL": small_recipe()})
    assert (tmp_path / "outputs" / "python" / "results" / "best_params.json").exists()
    assert (tmp_path / "outputs" / "python" / "plots" / "optimization_history.html").exists()


def small_recipe() -> object:
    """The quick start's recipe with one epoch on few rows."""
    from hpo_summarize.recipe import load_recipe

    changes = ["data.max_rows=16", "training.num_epochs=3", "generation.num_beams=1"]
    return load_recipe("recipes/quickstart.yaml", changes)
