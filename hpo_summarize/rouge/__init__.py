"""ROUGE for any language: an `evaluate` metric that needs no network."""

from hpo_summarize.rouge.metric import MEASURES, Rouge
from hpo_summarize.rouge.tokenizers import TOKENIZERS

__all__ = ["MEASURES", "TOKENIZERS", "Rouge"]
