"""The per-device batches that fit: found by running out of memory, and remembered.

Trainings are the same with any of them: what a device does not take at once is accumulated.
"""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import torch

from hpo_summarize.io import write_text
from hpo_summarize.study.user_attrs import FITTING_BATCHES

# Examples that a device takes at once, in training and in evaluation.
Sizes = tuple[int, int]


def halved(sizes: Sizes) -> Sizes | None:
    """The sizes to try after these ran out of memory; None where there are no smaller ones."""
    if sizes == (1, 1):
        return None
    return max(sizes[0] // 2, 1), max(sizes[1] // 2, 1)


def remember(study: optuna.Study, sizes: Sizes) -> None:
    """Records what fits on a device of this process's kind, for all runs of the study."""
    study.set_user_attr(_key(), list(sizes))


def remembered(study: optuna.Study) -> Sizes | None:
    """What fits on a device of this process's kind; None while everything did."""
    sizes = study.user_attrs.get(_key())
    return tuple(sizes) if sizes else None


def remember_in(path: Path, sizes: Sizes) -> None:
    """Like `remember`, in a file that is no study's."""
    write_text(path, json.dumps({_device_name(): sizes}))


def remembered_in(path: Path) -> Sizes | None:
    """Like `remembered`, from a file; None also where there is none."""
    sizes = json.loads(path.read_text("utf-8")).get(_device_name()) if path.is_file() else None
    return tuple(sizes) if sizes else None


def _key() -> str:
    return f"{FITTING_BATCHES}: {_device_name()}"


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
