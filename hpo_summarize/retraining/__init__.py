"""The final model: trained again with the values that a search has found, measured and saved."""

from hpo_summarize.retraining.retrain import Retraining

__all__ = ["Retraining"]
