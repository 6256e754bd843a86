"""What a study leaves behind: result files, plots and a report."""

from hpo_summarize.results.plots import write_plots
from hpo_summarize.results.report import write_report
from hpo_summarize.results.tables import write_results

__all__ = ["write_plots", "write_report", "write_results"]
