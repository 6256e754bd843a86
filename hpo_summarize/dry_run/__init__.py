"""Every setting of a recipe tried with the real classes before the first trial."""
