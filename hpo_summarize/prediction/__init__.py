"""Summaries of new dialogues, by a saved model or by the weights that a search has kept."""

from hpo_summarize.prediction.kept import load_kept
from hpo_summarize.prediction.predict import Prediction
from hpo_summarize.prediction.summarizer import (
    Summarizer,
    load_summarizer,
    make_summarizer,
    summarize_all,
)

__all__ = [
    "Prediction",
    "Summarizer",
    "load_kept",
    "load_summarizer",
    "make_summarizer",
    "summarize_all",
]
