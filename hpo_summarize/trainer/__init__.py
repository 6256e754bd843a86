"""The trainer. The only folder that overrides internals of transformers' Trainer.

Each override names the fault of the parent that it closes; `tests/test_upstream.py` shows the
faults of a search on the parent class.
"""

from hpo_summarize.trainer.corrected import CorrectedSeq2SeqTrainer
from hpo_summarize.trainer.measuring import EpochEvaluation
from hpo_summarize.trainer.search import SummarizationTrainer

__all__ = ["EpochEvaluation", "CorrectedSeq2SeqTrainer", "SummarizationTrainer"]
