"""What the scripts print before and after their work."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

from hpo_summarize.cli import command_line, predict_command
from hpo_summarize.components import Experiment
from hpo_summarize.config.parameters import foreign_settings
from hpo_summarize.errors import UnwrittenResults
from hpo_summarize.final_model.retrain import MODEL, Retraining
from hpo_summarize.final_model.train import Trained, in_words, of_trial, spread
from hpo_summarize.generation import summaries_in_words
from hpo_summarize.inspection import inspect_data
from hpo_summarize.models.families import language_of
from hpo_summarize.models.tokenizer import pieces_note, spare_rows_note
from hpo_summarize.optimizer import OptunaOptimizer
from hpo_summarize.predict import Prediction
from hpo_summarize.redact import redact_url
from hpo_summarize.reporting.outcome import trained_trial_of
from hpo_summarize.rouge import Rouge
from hpo_summarize.search_space import build_space
from hpo_summarize.study.run import is_exhausted
from hpo_summarize.study.trials import baseline_trial, best_trials, finished_trials, values_of
from hpo_summarize.study.user_attrs import BEST_EPOCH, SUMMARIES, WARM_START

_CHECKED_ROWS = 500
_SHOWN_FILES = ("report.html", "best_params.json", "all_trials.csv")


def print_search_plan(optimizer: OptunaOptimizer) -> None:
    """Prints what is going to run: model, data, space, storage, trials done and to do."""
    if not optimizer.writer.is_here():
        return
    recipe, experiment = optimizer.recipe, optimizer.experiment
    train, validation = experiment.splits
    done, search = len(finished_trials(optimizer.study)), recipe.search
    lora = "LoRA" if recipe.lora else "all weights"
    storage = redact_url(optimizer.studies.storage)
    print(f"model    {recipe.model.name or experiment.model_config.model_type}, training {lora}")
    print(f"data     {len(train)} dialogues to train on, {len(validation)} to validate on")
    notes = [*_token_notes(experiment), *_model_notes(experiment)]
    for note in filter(None, (*train.notes, *validation.notes, *notes)):
        print(f"note     {note}")
    print(f"search   {' and '.join(search.objectives)}, {search.direction}")
    if len(search.objectives) > 1:
        print("         several objectives: no trial is pruned, and the result is a Pareto front")
    if recipe.generation.max_new_tokens is None and "max_new_tokens" not in recipe.space:
        print(
            f"length   summaries of at most {experiment.max_new_tokens} tokens, a tenth more than"
        )
        print("         99.5% of the training ones; generation.max_new_tokens sets another limit")
    for line in experiment.space.explain():
        print(f"         {line}")
    if search.decode == "staged":
        count = search.staged.n_models
        print(f"decoding {search.staged.n_trials} trials on the {count} best models")
        for line in build_space(recipe, experiment.facts, "decoding").explain():
            print(f"         {line}")
    if optimizer.worker.count > 1:
        print(f"workers  {optimizer.worker.count}, each with its own trials on its own device")
    if (
        n_gpus := torch.cuda.device_count()
    ) > PartialState().num_processes * optimizer.worker.count:
        print(
            f"note     {n_gpus} GPUs are here, and one process uses one of them; all of them are "
            f"used under\n         accelerate launch --num_processes {n_gpus}"
        )
    if earlier := optimizer.study.user_attrs.get(WARM_START):
        taken, left_out = earlier["n_taken"], earlier["n_left_out"]
        print(
            f"earlier  {taken} of {taken + left_out} trials of '{earlier['study_name']}' in "
            f"{earlier['storage']} teach this search"
            + (left_out > 0) * "; the others do not fit it"
        )
    print(
        f"study    {optimizer.studies.name} in {storage}: {done} of {search.n_trials} trials done"
    )


def _token_notes(experiment: Experiment) -> list[str | None]:
    """What the tokenizer and the length limits do to the texts, on some of the validation rows."""
    recipe, tokenizer, rows = experiment.recipe, experiment.tokenizer, experiment.splits[1]
    draw, count = random.Random(recipe.data.seed), min(len(rows), _CHECKED_ROWS)
    drawn = {"validation": rows.rows(sorted(draw.sample(range(len(rows)), count)))}
    rouge = Rouge(**recipe.rouge.model_dump())  # What it decides by these rows binds no trial.
    limit = experiment.longest_output
    inspection = inspect_data(drawn, tokenizer, recipe.data, 0, rouge, limit)
    return [pieces_note(tokenizer, recipe.data.special_tokens), *inspection.warnings]


def _model_notes(experiment: Experiment) -> list[str | None]:
    recipe = experiment.recipe
    if recipe.model.name is None:
        return []  # It is made with as many embeddings as its tokenizer has tokens.
    rows = getattr(experiment.model_config, "vocab_size", 0)
    notes = [spare_rows_note(experiment.tokenizer, rows)]
    if recipe.model.language is None and (code := language_of(experiment.tokenizer)):
        notes.append(f"all texts are marked as {code}; model.language sets another language")
    dropped = foreign_settings(
        experiment.own_decoding, {*recipe.generation.settings(), *recipe.space}
    )
    if dropped:
        values = ", ".join(f"{name} {value}" for name, value in dropped.items())
        notes.append(
            f"not used of the checkpoint's own decoding: {values} (limits for other texts, or "
            "what no recipe may set)"
        )
    return notes


def search(optimizer: OptunaOptimizer) -> None:
    """Runs a search and prints its result, also where a page of it could not be written.

    Raises:
        HpoError: As `OptunaOptimizer.optimize`.
    """
    try:
        optimizer.optimize()
    except UnwrittenResults:
        print_search_result(optimizer)
        raise
    print_search_result(optimizer)


def print_search_result(optimizer: OptunaOptimizer) -> None:
    """Prints the best trial or the Pareto front, and where the results are."""
    with optimizer.writer.once("result") as is_new:
        if is_new:
            _print_best(optimizer)


def _print_best(optimizer: OptunaOptimizer) -> None:
    study, names = optimizer.studies.final(), optimizer.recipe.search.objectives
    if is_exhausted(optimizer.study):
        count, wanted = len(finished_trials(optimizer.study)), optimizer.recipe.search.n_trials
        print(f"every combination has been tried, with {count} of {wanted} trials")
    best = best_trials(study)
    several = len(study.directions) > 1
    print(f"\nPareto front: {len(best)} trials" if several else "")
    for trial in best:
        values = ", ".join(f"{n} {v:.4f}" for n, v in zip(names, trial.values, strict=True))
        epoch = trial.user_attrs[BEST_EPOCH]
        number = trained_trial_of(trial)
        print(f"{'' if several else 'best '}trial {number}: {values} at epoch {epoch:g}")
        for name, value in values_of(trial).items():
            print(f"  {name}: {value:.6g}" if isinstance(value, float) else f"  {name}: {value}")
        for line in summaries_in_words(trial.user_attrs.get(SUMMARIES)):
            print(line)
    first = baseline_trial(optimizer.study)
    if not several and first is not None and best[0].values != first.values:
        start = first.values[0]
        cheaply = (
            ""
            if study.study_name == optimizer.study.study_name
            else ", decoded as in the first stage"
        )
        change = f" (a change of {(best[0].value - start) / abs(start):+.0%})" if start else ""
        print(f"trial {first.number}, the recipe's own values{cheaply}: {start:.4f}{change}")
    files = [name for name in _SHOWN_FILES if (optimizer.output_dir / name).is_file()]
    if files:
        print(f"results in {optimizer.output_dir}: {', '.join(files)}")
    written = optimizer.output_dir / "recipe.yaml"
    print(f"next     {command_line('train', written)}")
    print(f"then     {predict_command(optimizer.recipe, written)}")


def say(line: str) -> None:
    """Prints a line, on the main process only."""
    if PartialState().is_main_process:
        print(line, flush=True)


def print_training_plan(retraining: Retraining) -> None:
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


def print_training_result(
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


def print_prediction_plan(prediction: Prediction, notes: Sequence[str]) -> None:
    """Prints the model, its decoding and what is known of the data."""
    if not PartialState().is_main_process:
        return
    summarizer = prediction.summarizer
    print(f"model    {prediction.folder}")
    print(f"decoding {summarizer.describe_decoding()}")
    print(f"input    dialogues are cut at {summarizer.max_dialogue_tokens} tokens")
    for note in notes:
        print(f"note     {note}")


def print_prediction_result(prediction: Prediction, scores: dict[str, Any] | None) -> None:
    """Prints the scores, where there are any, and where the summaries are."""
    if not PartialState().is_main_process:
        return
    if scores is not None:
        measures = {name: value for name, value in scores.items() if isinstance(value, float)}
        text = "  ".join(f"{name} {value:.4f}" for name, value in measures.items())
        print(f"scores   {text}, on {scores['n_rows']} rows with references")
        print(f"         in lower case, cut into tokens by '{scores['rouge_tokenizer']}'")
    for line in summaries_in_words(prediction.description):
        print(line)
    print(f"summaries in {prediction.output}")
