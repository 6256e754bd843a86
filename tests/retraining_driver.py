"""Run by tests/test_retraining_group.py: a training in which something happens to a process.

retraining_driver.py MODE RANKS RECIPE FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback

from hpo_summarize.cli import run
from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import load_recipe
from hpo_summarize.final_model.train import Training
from hpo_summarize.launch.processes import join_group
from hpo_summarize.study.trials import Candidate


class Trouble(TrainerCallback):
    """In the second epoch an error, or no memory for more than 2 examples, on some processes."""

    def __init__(self, mode: str, ranks: str) -> None:
        self.mode = mode
        self.here = str(PartialState().process_index) in ranks.split(",")
        self.batches: list[tuple[int, int, int]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        sizes = (args.per_device_train_batch_size, args.gradient_accumulation_steps)
        self.batches.append((state.global_step, *sizes))
        if not self.here or (state.epoch or 0) < 1:
            return
        if self.mode == "error":
            raise RuntimeError("the test breaks this process")
        if self.mode == "memory" and sizes[0] > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")


def main() -> None:
    mode, ranks, recipe, folder = sys.argv[1:]
    join_group()
    experiment, trouble = Experiment(load_recipe(recipe)), Trouble(mode, ranks)
    one = Training(Candidate(0, {"learning_rate": 0.02}, 3, (0.1,), "tiny"), seed=42)
    model = one.run(experiment, Path(folder), *experiment.splits, [trouble])
    if PartialState().is_main_process:
        torch.save(model.state_dict(), Path(folder) / "weights.pt")
        (Path(folder) / "batches.json").write_text(json.dumps(trouble.batches))


if __name__ == "__main__":
    run(main, kept="every finished epoch")
