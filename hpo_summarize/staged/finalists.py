"""The trained models that the second stage of a staged search chooses among."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hpo_summarize.attributes import BEST_EPOCH
from hpo_summarize.errors import StudyError
from hpo_summarize.study import best_trials, values_of


@dataclass(frozen=True)
class Finalist:
    """A trained model of the first stage.

    Attributes:
        number: Of its trial.
        params: Its hyperparameters by name.
        epoch: The epoch that its weights are of.
        checkpoint: Folder with the weights.
    """

    number: int
    params: dict[str, Any]
    epoch: float
    checkpoint: Path


def find_finalists(
    study: optuna.Study, folder_of: Callable[[FrozenTrial], Path], count: int
) -> list[Finalist]:
    """The best trials of the first stage with their weights, at most `count`, best first.

    Raises:
        StudyError: The weights of one of them are not here. Another worker, which has them, would
            search other models.
    """
    sign = 1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else -1
    best = sorted(
        best_trials(study, count), key=lambda trial: (-sign * trial.values[0], trial.number)
    )
    found, missing = [], []
    for trial in best[:count]:
        checkpoints = sorted(folder_of(trial).glob("checkpoint-*"))
        if len(checkpoints) == 1:
            epoch = trial.user_attrs[BEST_EPOCH]
            found.append(Finalist(trial.number, values_of(trial), epoch, checkpoints[0]))
        else:
            missing.append(str(trial.number))
    if missing:
        raise StudyError(
            "decoding cannot be searched: the weights of the best trials (missing: "
            f"{', '.join(missing)}) are not all in {folder_of(best[0]).parent}; run this where "
            "they are, or give all machines one folder"
        )
    return found
