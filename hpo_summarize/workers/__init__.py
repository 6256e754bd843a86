"""Several processes of one launch, each at its own trials: devices, threads, and who writes."""

from hpo_summarize.workers.launch import (
    Worker,
    launch_name,
    launch_note,
    n_cores,
    separate_workers,
)
from hpo_summarize.workers.writer import Writer

__all__ = ["Worker", "Writer", "launch_name", "launch_note", "n_cores", "separate_workers"]
