"""Compares the stock search, plain Optuna and ours: python scripts/benchmark.py [OPTIONS]."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpo_summarize.cli import run

QUICKSTART = Path(__file__).parents[1] / "recipes" / "quickstart"


def main() -> None:
    """The stages of a benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", help="CSV to train and validate on; default: the quick start's")
    parser.add_argument("--test", help="CSV for the last measurement of the winners")
    parser.add_argument("--recipe", help="YAML file in place of the data and the space")
    parser.add_argument("--n_trials", type=int, help="trials of each search; default: 20")
    parser.add_argument("--seeds", type=int, default=3, help="searches of each method")
    parser.add_argument(
        "--methods", nargs="+", help="some of stock, train_once, joint, staged, unpruned"
    )
    parser.add_argument("--jobs", type=int, default=1, help="searches at once, one thread each")
    parser.add_argument("--output", type=Path, default=Path("outputs/benchmark"), help="folder")
    parser.add_argument("--overhead", action="store_true", help="measure only what a trial costs")
    arguments = parser.parse_args()

    from benchmarking.overhead import measure_overhead
    from benchmarking.report import write_benchmark
    from benchmarking.schedule import check_runs, read_records, run_missing
    from benchmarking.setting import choose_recipe, prepare
    from benchmarking.winners import judge_winners

    if arguments.overhead:
        for name, value in measure_overhead().items():
            print(f"{name:<14} {value:.2f}" if isinstance(value, float) else f"{name:<14} {value}")
        return
    methods, seeds = check_runs(arguments.methods, arguments.seeds, arguments.jobs)
    recipe = choose_recipe(
        QUICKSTART, arguments.data, arguments.test, arguments.recipe, arguments.n_trials
    )
    prepare(recipe, arguments.output)
    run_missing(arguments.output, methods, seeds, arguments.jobs)
    records = read_records(arguments.output, methods, seeds)
    winners = judge_winners(recipe, records, arguments.output)
    print(write_benchmark(recipe, winners, arguments.output))
    print(f"\nresults in {arguments.output}: benchmark.json, table.md, benchmark.html, winners/")
    winners.require_one()


if __name__ == "__main__":
    run(main)
