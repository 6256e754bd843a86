"""The trials that a final model can be made of: from `best_params.json`, or from the study."""

from hpo_summarize.best.candidate import Candidate
from hpo_summarize.best.choose import choose_candidates, find_candidates
from hpo_summarize.best.written import BEST_PARAMS, read_candidates

__all__ = ["BEST_PARAMS", "Candidate", "choose_candidates", "find_candidates", "read_candidates"]
