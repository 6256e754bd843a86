"""The benchmark: a stock search, the guide's way and ours, on the same data, space and seeds."""
