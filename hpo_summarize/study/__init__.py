"""Optuna studies. The only folder that makes a study."""

from hpo_summarize.study.identity import check_identity, identity_of
from hpo_summarize.study.lookup import find_study
from hpo_summarize.study.running import TrialError, open_study, run_study
from hpo_summarize.study.sampling import build_pruner, build_sampler, derive_seed, is_exhausted
from hpo_summarize.study.storage import build_storage, default_storage_url
from hpo_summarize.study.trials import (
    best_trials,
    counts,
    finished_trials,
    require_complete,
)

__all__ = [
    "TrialError",
    "best_trials",
    "build_pruner",
    "build_sampler",
    "build_storage",
    "check_identity",
    "counts",
    "default_storage_url",
    "derive_seed",
    "find_study",
    "finished_trials",
    "identity_of",
    "is_exhausted",
    "open_study",
    "require_complete",
    "run_study",
]
