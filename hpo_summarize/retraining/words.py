"""What scripts/train.py prints."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import PartialState

from hpo_summarize.cli import predict_command
from hpo_summarize.decoding import summaries_in_words
from hpo_summarize.retraining.retrain import MODEL, Retraining
from hpo_summarize.retraining.trained import Trained, in_words, of_trial, spread


def say(line: str) -> None:
    """Prints a line, on the main process only."""
    if PartialState().is_main_process:
        print(line, flush=True)


def print_plan(retraining: Retraining) -> None:
    """Prints the trials, their values and the sizes of the data."""
    train, validation = retraining.experiment.splits
    test = retraining.test
    section = retraining.recipe.train
    for candidate in retraining.candidates:
        values = " ".join(f"{value:.4f}" for value in candidate.values)
        where = "in the first stage of the search" if candidate.own_decoding else "in the search"
        say(f"trial    {candidate.number} of {candidate.study_name}: {values} {where}")
        if candidate.own_decoding:
            say("         no decoding of it was searched to the end: decoded as the recipe says")
        for name, value in candidate.params.items():
            say(
                f"         {name}: {value:.6g}"
                if isinstance(value, float)
                else f"         {name}: {value}"
            )
        total = candidate.n_epochs(retraining.recipe)
        say(f"epochs   {candidate.epoch:g}, with the schedule of {total:g}")
    one_of_front = len(retraining.candidates[0].values) > 1 and len(retraining.candidates) == 1
    if one_of_front and not retraining.is_named:
        say("         of the Pareto front the best in the first objective; --trial names another")
    missing = (
        "no test split (data.test)" if retraining.recipe.data.test is None else "none to test on"
    )
    tested = f"{len(test)} to test on" if test else missing
    added = " and trained on, too" if section.use_validation else ""
    validated = f"{len(validation)} to validate on{added}"
    say(f"data     {len(train)} dialogues to train on, {validated}, {tested}")
    for note in retraining.notes:
        say(f"note     {note}")
    say(f"seeds    {', '.join(map(str, section.seeds))}")


def print_result(
    retraining: Retraining, best: Trained, trained: Sequence[Trained], words: Sequence[str]
) -> None:
    """Prints the scores of the kept model, where it is, and the command that uses it.

    Args:
        retraining: What has run.
        best: The training that is kept.
        trained: All trainings.
        words: The recipe and the changes to it, as they stood on the command line.
    """
    training = best.training
    say(f"\nkept: trial {training.candidate.number}, seed {training.seed}")
    for split, scores in best.scores.items():
        say(f"  {split}: {in_words(scores)}")
        for line in summaries_in_words(best.summaries[split]):
            say(f"  {line}")
    runs = of_trial(trained, training.candidate.number)
    if len(runs) > 1:
        for split, measures in spread(runs).items():
            shown = (f"{n} {v['mean']:.4f} ± {v['deviation']:.4f}" for n, v in measures.items())
            say(f"  {split}, mean and deviation of {len(runs)} seeds: {'  '.join(shown)}")
    say(f"model in {retraining.output_dir / MODEL}: README.md, scores.json")
    if repository := retraining.recipe.train.push_to_hub:
        say(f"uploaded to {repository}")
    say(f"next     {predict_command(retraining.recipe, *words)}")
