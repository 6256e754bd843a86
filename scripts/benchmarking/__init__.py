"""The benchmark: a stock search, one that evaluates each trial once at its end, and ours."""
