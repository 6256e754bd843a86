"""The documentation is true: its paths exist, and its commands are run here or by CI."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from readme_blocks import blocks

PACKAGE = REPOSITORY / "hpo_summarize"
PAGES = {
    name: (REPOSITORY / name).read_text(encoding="utf-8")
    for name in ("README.md", "CONTRIBUTING.md", "recipes/README.md", "scripts/README.md")
}
TEXT = PAGES["README.md"]
RUN_BY_CI = {"quickstart", "tests", "two-processes"}
RUN_HERE = {"own-data", "python"}


def test_every_shell_and_python_block_has_a_name_and_is_run() -> None:
    marked = set(blocks())
    assert marked == RUN_BY_CI | RUN_HERE
    assert len(re.findall(r"```(?:bash|python)\n", TEXT)) == len(marked)
    ci = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"readme_blocks.py {name}" in ci for name in RUN_BY_CI)


@pytest.mark.parametrize("page", PAGES)
def test_every_path_on_a_page_exists(page: str) -> None:
    paths = re.findall(r"\b(?:scripts|recipes|tests)/[\w./-]+\w", PAGES[page])
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_every_option_of_the_commands_is_documented() -> None:
    page = PAGES["scripts/README.md"]
    for script in (REPOSITORY / "scripts").glob("*.py"):
        options = re.findall(r'add_argument\(\s*"(--\w+)"', script.read_text(encoding="utf-8"))
        assert [option for option in options if option not in page] == []


def test_every_entry_of_the_file_tree_exists_and_nothing_is_left_out() -> None:
    tree = PAGES["CONTRIBUTING.md"].split("## Map")[1].split("```")[1].split("hpo_summarize/\n")[1]
    lines = [line for line in tree.splitlines() if line.startswith("  ")]
    shown = [name.strip(" /") for line in lines for name in re.findall(r"\w+\.py|^ +\w+/", line)]
    there = [p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()]
    assert sorted(shown) == sorted(set(there) - {"__init__.py"})


def test_the_number_of_shown_faults_is_right() -> None:
    shown = (REPOSITORY / "tests" / "test_upstream.py").read_text(encoding="utf-8").count("\n@both")
    assert f"{shown} tests that fail on the stock class pass on ours" in TEXT


def test_imports_go_in_the_order_that_contributing_says() -> None:
    text = PAGES["CONTRIBUTING.md"]
    groups = text.split("of earlier groups:")[1].split(".\n  Scripts")[0].split(";")
    place = {
        name: number
        for number, group in enumerate(groups)
        for name in re.findall(r"`(\w+)`", group)
    }
    modules = [p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py"]
    for path in modules:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        code = path.read_text(encoding="utf-8")
        imported = re.findall(r"^ *from hpo_summarize\.(\w+)", code, re.MULTILINE)
        for line in re.findall(r"^ *from hpo_summarize import (.+)", code, re.MULTILINE):
            imported += [name for name in re.findall(r"\w+", line) if name != "__version__"]
        for name in set(imported) - {own}:
            assert place[name] < place[own], f"{path} imports {name}"


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").symlink_to(REPOSITORY / "recipes")
    monkeypatch.chdir(tmp_path)
    code = blocks()["python"].replace('"recipes/quickstart.yaml", ', "SMALL, ")
    exec(code, {"SMALL": small_recipe()})
    assert (tmp_path / "outputs" / "python" / "results" / "best_params.json").exists()
    assert (tmp_path / "outputs" / "python" / "plots" / "optimization_history.html").exists()


def small_recipe() -> object:
    """The quick start's recipe with one epoch on few rows."""
    from hpo_summarize.config.loader import load_recipe

    changes = ["data.max_rows=16", "training.num_epochs=3", "generation.num_beams=1"]
    return load_recipe("recipes/quickstart.yaml", changes)
