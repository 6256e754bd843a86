"""The per-device batches that fit: found by running out of memory, remembered in the study."""

from __future__ import annotations

import optuna
import torch

from hpo_summarize.attributes import FITTING_BATCHES

# Examples that a device takes at once, in training and in evaluation.
Sizes = tuple[int, int]


def halved(sizes: Sizes) -> Sizes | None:
    """The sizes to try after these ran out of memory; None where there are no smaller ones."""
    if sizes == (1, 1):
        return None
    return max(sizes[0] // 2, 1), max(sizes[1] // 2, 1)


def remember(study: optuna.Study, sizes: Sizes) -> None:
    """Writes down what fits on a device of this process's kind, for all that go on with the study.

    Trials are the same with any of them: what a device does not take at once is accumulated.
    """
    study.set_user_attr(_key(), list(sizes))


def remembered(study: optuna.Study) -> Sizes | None:
    """What fits on a device of this process's kind; None as long as everything did."""
    sizes = study.user_attrs.get(_key())
    return tuple(sizes) if sizes else None


def _key() -> str:
    return f"{FITTING_BATCHES}: {_device_name()}"


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
