"""What a study leaves behind: result files, plots, a report, and what is printed."""
