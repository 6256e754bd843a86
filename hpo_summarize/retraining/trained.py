"""Finished trainings and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from hpo_summarize.retraining.training import Training

# ROUGE F1 by split (`validation`, `test`) and measure, 0 to 1.
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Trained:
    """A finished training.

    Attributes:
        training: What was trained.
        folder: Folder of its model.
        scores: Scores of its saved model, by split and measure.
        summaries: What its summaries are like, by split (`Summaries.describe`).
    """

    training: Training
    folder: Path
    scores: Scores
    summaries: dict[str, dict[str, Any]]


def of_trial(trained: Sequence[Trained], number: int) -> list[Trained]:
    """The trainings of one trial, one for each seed."""
    return [one for one in trained if one.training.candidate.number == number]


def spread(trained: Sequence[Trained]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and sample standard deviation of several trainings, by split and measure.

    Args:
        trained: At least two.
    """
    runs = [one.scores for one in trained]
    return {
        split: {name: _mean_and_deviation([run[split][name] for run in runs]) for name in measures}
        for split, measures in runs[0].items()
    }


def _mean_and_deviation(values: list[float]) -> dict[str, float]:
    return {"mean": fmean(values), "deviation": stdev(values)}


def in_words(scores: Mapping[str, float]) -> str:
    """The measures of one split in one line."""
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
