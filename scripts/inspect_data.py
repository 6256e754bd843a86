"""Shows the data of a recipe as its model will see them: python scripts/inspect_data.py RECIPE."""

from __future__ import annotations

import argparse

from hpo_summarize.cli import add_recipe_arguments, read_recipe, run


def main() -> None:
    """Reads every split that the recipe names, the test split too, and prints what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_recipe_arguments(parser)
    recipe = read_recipe(parser.parse_intermixed_args())

    from hpo_summarize.components import Experiment
    from hpo_summarize.data.splits import read_dialogues
    from hpo_summarize.inspection import inspect_data, print_inspection

    experiment = Experiment(recipe)
    splits = dict(zip(("train", "validation"), experiment.splits, strict=True))
    if recipe.data.test is not None:
        splits["test"] = read_dialogues(recipe.data.test, recipe.data, require_summaries=False)
    for split in splits.values():
        print("\n".join(f"note: {note}" for note in split.notes), end="\n" if split.notes else "")
    inspection = inspect_data(
        splits,
        experiment.tokenizer,
        recipe.data,
        rouge=experiment.rouge,
        max_new_tokens=experiment.max_new_tokens,
    )
    print_inspection(inspection)


if __name__ == "__main__":
    run(main)
