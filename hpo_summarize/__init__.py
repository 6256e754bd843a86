"""Hyperparameter optimisation for dialogue summarisation, native to the Hugging Face Trainer.

The public names are imported on first use, so that `import hpo_summarize` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "OptunaOptimizer": "optimizer",
    "create_optuna_optimizer": "optimizer",
    "OptunaPruningCallback": "training.callbacks",
    "SummarizationTrainer": "training.trainer",
    "Rouge": "rouge",
    "load_recipe": "config.loader",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hpo_summarize' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hpo_summarize.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
