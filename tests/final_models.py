"""Small searches with their data, for the tests of what comes after a search."""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from conftest import make_rows
from programs import run_well

# Dialogues of 24, 8 and 10 rows that no other split has.
_SEEDS = {"train": (24, 0), "validation": (8, 1), "test": (10, 2)}

RECIPE = """
model: {{name: {checkpoint}}}
lora: {lora}
data:
  train: {folder}/train.csv
  validation: {folder}/validation.csv
  test: {folder}/test.csv
  max_dialogue_tokens: 40
  max_summary_tokens: 30
  special_tokens: ["#Person1#", "#Person2#", "#Person3#"]
training: {{num_epochs: 2, batch_size: 4, learning_rate: 2e-2, per_device_eval_batch_size: 4}}
generation: {{num_beams: {beams}, max_new_tokens: 12{generation}}}
search: {{n_trials: 2, keep_trials: 2, pruner: null}}
space:
  learning_rate: {{type: float, low: 1e-2, high: 5e-2, log: true}}
  hidden_dropout: {{type: float, low: 0.0, high: 0.2}}
{space}
output_dir: {folder}/out
"""


def write_data(folder: Path) -> None:
    """Training, validation and test split."""
    for name, (count, seed) in _SEEDS.items():
        pd.DataFrame(make_rows(count, seed)).to_csv(folder / f"{name}.csv", index=False)


def write_recipe(
    folder: Path,
    checkpoint: Path,
    lora: str = "null",
    generation: str = "",
    space: str = "",
    beams: int = 1,
) -> Path:
    """A recipe in a folder with its data."""
    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    path = folder / "tiny.yaml"
    fields = {
        "checkpoint": checkpoint,
        "lora": lora,
        "generation": generation,
        "space": space,
        "beams": beams,
    }
    path.write_text(RECIPE.format(folder=folder, **fields))
    return path


def search(folder: Path, checkpoint: Path, **changes: Any) -> Path:
    """The recipe of a finished search."""
    recipe = write_recipe(folder, checkpoint, **changes)
    run_well("search", recipe)
    return recipe


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def paths_within(folder: Path) -> list[str]:
    """Paths of this machine in the files of a folder, which may be published."""
    here = re.compile(
        "|".join(map(re.escape, {tempfile.gettempdir(), os.getcwd(), str(Path.home())}))
    )
    texts = {path: path.read_bytes().decode("utf-8", "replace") for path in folder.rglob("*.*")}
    assert texts.keys() >= {folder / "README.md", folder / "model.safetensors"}
    return [
        f"{p.name}: {text[m.start():][:60]}"
        for p, text in texts.items()
        for m in here.finditer(text)
    ]
