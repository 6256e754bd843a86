"""Measures what a storage costs many workers: python scripts/simulate_workers.py STORAGE_URL."""

from __future__ import annotations

import argparse
import dataclasses

from hpo_summarize.cli import run


def main() -> None:
    """Simulates the search and prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("storage", help="URL of a storage without a study named simulation")
    parser.add_argument("--workers", type=int, default=32, help="processes")
    parser.add_argument("--n_trials", type=int, default=128, help="trials of all workers together")
    parser.add_argument("--trial_seconds", type=float, default=10.0, help="sleep of one trial")
    arguments = parser.parse_args()

    from simulation import simulate

    found = simulate(
        arguments.storage, arguments.workers, arguments.n_trials, arguments.trial_seconds
    )
    for name, value in dataclasses.asdict(found).items():
        print(f"{name:<18} {value:.2f}" if isinstance(value, float) else f"{name:<18} {value}")


if __name__ == "__main__":
    run(main)
