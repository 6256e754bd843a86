"""The Optuna study of a search: storage, sampler, pruner, resume and recovery."""
