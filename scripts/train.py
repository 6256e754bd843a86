"""Trains the final model after a search: accelerate launch scripts/train.py RECIPE."""

from __future__ import annotations

import argparse

from hpo_summarize.cli import add_recipe_arguments, given_words, read_recipe, run


def main() -> None:
    """The stages of the final training."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_recipe_arguments(parser)
    parser.add_argument(
        "--best_params", help="best_params.json of a search (default the one in OUTPUT_DIR)"
    )
    parser.add_argument(
        "--top", type=int, default=1, help="number of best trials to train (default 1)"
    )
    parser.add_argument("--trial", type=int, help="train the trial of this number")
    arguments = parser.parse_intermixed_args()
    recipe = read_recipe(arguments)

    from hpo_summarize.console import print_training_plan, print_training_result, say
    from hpo_summarize.final_model.retrain import Retraining
    from hpo_summarize.launch.processes import join_group

    join_group()
    retraining = Retraining(
        recipe, arguments.best_params, arguments.top, arguments.trial, on_event=say
    )
    retraining.prepare()
    print_training_plan(retraining)
    trained = retraining.run()
    best = retraining.publish(trained)
    print_training_result(retraining, best, trained, given_words(arguments))


if __name__ == "__main__":
    run(main, kept="every finished epoch")
