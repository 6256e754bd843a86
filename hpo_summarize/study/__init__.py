"""The Optuna study of a search: storage, sampler, pruner, resume and recovery."""

from hpo_summarize.study.identity import check_identity, check_result, identity_of
from hpo_summarize.study.lookup import find_study
from hpo_summarize.study.pruning import build_pruner, prune_after
from hpo_summarize.study.running import (
    StudyCallback,
    TrialError,
    is_exhausted,
    open_study,
    run_study,
    wait_for_running,
)
from hpo_summarize.study.sampling import build_sampler, derive_seed
from hpo_summarize.study.storage import build_storage, default_storage_url
from hpo_summarize.study.trials import (
    baseline_trial,
    best_trials,
    counts,
    finished_trials,
    require_complete,
    seconds_of,
    values_of,
)
from hpo_summarize.study.warm_start import warm_start_of

__all__ = [
    "StudyCallback",
    "TrialError",
    "baseline_trial",
    "best_trials",
    "build_pruner",
    "build_sampler",
    "build_storage",
    "check_identity",
    "check_result",
    "counts",
    "default_storage_url",
    "derive_seed",
    "find_study",
    "finished_trials",
    "identity_of",
    "is_exhausted",
    "open_study",
    "prune_after",
    "require_complete",
    "run_study",
    "seconds_of",
    "values_of",
    "wait_for_running",
    "warm_start_of",
]
