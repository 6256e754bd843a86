"""The names of the files that the results of a study are written to."""

from __future__ import annotations

DECODING_FOLDER = "decoding"  # The pages of a staged search's second stage.

_PAGES = (
    *("optimization_history.html", "param_importances.html", "parallel_coordinate.html"),
    *("slice.html", "intermediate_values.html", "timeline.html", "pareto_front.html"),
)

# Paths in the output folder.
RESULT_FILES = (
    *("best_params.json", "all_trials.csv", "decoding_trials.csv", "study_stats.json"),
    *("report.html", *_PAGES, *(f"{DECODING_FOLDER}/{page}" for page in _PAGES)),
)
