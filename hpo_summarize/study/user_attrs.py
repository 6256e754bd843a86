"""User attributes of trials and studies."""

from __future__ import annotations

# Of a trial.
BEST_EPOCH = "best_epoch"  # The epoch that its value comes from.
EPOCH_VALUE = "epoch_value"  # What the evaluation after that epoch gave, before the full one.
BEATEN = "beaten"  # Why it was trained to its end and not measured in full.
SUMMARIES = "summaries"  # Counts of the summaries that its value comes from (`Summaries`).
FAILURE = "failure"  # Why it ended in an error.
SECONDS = "seconds"  # How long it ran, by a monotonic clock.
INTERRUPTED = "interrupted"  # Its worker ended in the middle of it; it does not count.
CONTINUES = "continues"  # Number of the interrupted trial that it continues.
FOLDER = "folder"  # The mark of the folder with its checkpoints.
WORKER = "worker"  # Host, process and start of the process that runs it.
SURPLUS = "surplus"  # Two workers began or queued a trial at once, and this one came second.
ENDED_RUN = "ended_run"  # An error of the set-up that ended the run in the middle of it.
N_DECODED = "n_decoded"  # Rows that a pruned trial of the decoding stage has decoded.
TRAINED_TRIAL = "trained_trial"  # Whose weights a trial of the decoding stage decodes with.
VALUES = "values"  # All its hyperparameters, where they differ from the sampled ones.
EARLIER = "earlier"  # Study and number of the trial that it is a copy of; it does not count.

# Of a study.
FINGERPRINT = "identity"  # The settings that every run of it must share.
STAGE = "stage"  # "decoding" for the second stage of a staged search.
MAX_NEW_TOKENS = "max_new_tokens"  # Most tokens of a summary where a trial does not say it.
DECODING_STUDY = "decoding_study"  # Name of the second stage of a staged search.
OBJECTIVES = "objectives"  # Names of the metrics that are searched for.
FITTING_BATCHES = "fitting_batches"  # Per-device sizes, one attribute for each kind of device.
EXHAUSTED = "exhausted"  # Every combination of its space was tried.
BEGUN = "begun"  # All its first trials are there.
WARM_START = "warm_start"  # Which earlier study its first trials were copied from.
