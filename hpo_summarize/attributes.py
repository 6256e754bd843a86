"""User attributes by which the parts of a search tell each other about trials and studies."""

# Of a trial.
BEST_EPOCH = "best_epoch"  # The epoch that its value comes from.
EPOCH_VALUE = "epoch_value"  # What the cheap evaluation of that epoch gave.
FAILURE = "failure"  # Why it ended in an error.
INTERRUPTED = "interrupted"  # The run ended in the middle of it; it does not count.
CONTINUES = "continues"  # Number of the interrupted trial that it goes on with.
WORKER = "worker"  # Host, process and start of the process that runs it.
SURPLUS = "surplus"  # Two workers began the last trial at once, and this one came second.
VALUES = "values"  # All its hyperparameters, where they are more than the sampled ones.

# Of a study.
IDENTITY = "identity"  # The settings that every run of it must share.
OBJECTIVES = "objectives"  # Names of the metrics that are searched for.
