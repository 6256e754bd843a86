"""Summarises new dialogues: accelerate launch scripts/predict.py RECIPE."""

from __future__ import annotations

import argparse

from hpo_summarize.cli import add_recipe_arguments, read_recipe, run


def main() -> None:
    """The stages of a prediction."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_recipe_arguments(parser)
    parser.add_argument(
        "--model", help="folder of a model, or best: the search's (default OUTPUT_DIR/model)"
    )
    parser.add_argument("--input", help="file with dialogues (default data.test)")
    parser.add_argument("--output", help="CSV file to write (default OUTPUT_DIR/predictions.csv)")
    arguments = parser.parse_intermixed_args()
    recipe = read_recipe(arguments)

    from hpo_summarize.console import print_prediction_plan, print_prediction_result
    from hpo_summarize.launch.processes import join_group
    from hpo_summarize.predict import Prediction

    join_group()
    prediction = Prediction(recipe, arguments.model, arguments.input, arguments.output)
    notes = prediction.prepare()
    print_prediction_plan(prediction, notes)
    scores = prediction.run()
    print_prediction_result(prediction, scores)


if __name__ == "__main__":
    run(main, kept="every finished batch")
