"""Finds the best hyperparameters of a summariser: accelerate launch scripts/search.py RECIPE."""

from __future__ import annotations

import argparse

from hpo_summarize.cli import add_recipe_arguments, read_recipe, run
from hpo_summarize.launch.workers import separate_workers


def main() -> None:
    """The stages of a search."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_recipe_arguments(parser)
    parser.add_argument("--n_trials", type=int, help="finished trials wanted in the study")
    parser.add_argument("--timeout", type=float, help="seconds after which no new trial starts")
    parser.add_argument("--storage", help="storage URL of the study")
    parser.add_argument("--study_name", help="name of the study in its storage")
    arguments = parser.parse_intermixed_args()
    recipe = read_recipe(arguments, search=("n_trials", "timeout", "storage", "study_name"))

    worker = separate_workers() if recipe.search.parallel == "trials" else None

    from hpo_summarize import OptunaOptimizer
    from hpo_summarize.console import print_search_plan, search

    optimizer = OptunaOptimizer(recipe, worker=worker)
    optimizer.prepare(debug=arguments.debug)
    print_search_plan(optimizer)
    search(optimizer)


if __name__ == "__main__":
    run(main)
