"""What the scripts print before and after their work; the rest is `reporting.progress`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate import PartialState
from optuna.trial import FrozenTrial

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


def say(line: str) -> None:
    """Prints a line, on the main process only."""
    if PartialState().is_main_process:
        print(line, flush=True)


def _rows(label: str, *lines: object) -> None:
    """Prints lines below each other, with a label before the first."""
    for line in lines:
        say(f"{label:<9}{line}")
        label = ""


def _settings(values: Mapping[str, Any]) -> list[str]:
    return [f"{n}: {v:.6g}" if isinstance(v, float) else f"{n}: {v}" for n, v in values.items()]


def print_search_plan(optimizer: OptunaOptimizer) -> None:
    """Prints what is going to run: model, data, space, storage, trials done and to do."""
    if not optimizer.writer.is_here():
        return
    recipe, experiment, search = optimizer.recipe, optimizer.experiment, optimizer.recipe.search
    train, validation = experiment.splits
    name = recipe.model.name or experiment.model_config.model_type
    _rows("model", f"{name}, training {'LoRA' if recipe.lora else 'all weights'}")
    _rows("data", f"{len(train)} dialogues to train on, {len(validation)} to validate on")
    for note in (*train.notes, *validation.notes, *_text_notes(experiment)):
        _rows("note", note)
    for note in _model_notes(experiment):
        _rows("note", note)
    if recipe.generation.max_new_tokens is None and "max_new_tokens" not in recipe.space:
        _rows(
            "length",
            f"summaries of at most {experiment.max_new_tokens} tokens, a tenth more than",
            "99.5% of the training ones; generation.max_new_tokens sets another limit",
        )
    _rows("search", f"{' and '.join(search.objectives)}, {search.direction}")
    if len(search.objectives) > 1:
        _rows("", "several objectives: no trial is pruned, and the result is a Pareto front")
    _rows("", *experiment.space.explain())
    if search.decode == "staged":
        staged = search.staged
        _rows("decoding", f"{staged.n_trials} trials on the {staged.n_models} best models")
        _rows("", *build_space(recipe, experiment.facts, "decoding").explain())
    _print_devices(optimizer.worker.count)
    if earlier := optimizer.study.user_attrs.get(WARM_START):
        _print_warm_start(earlier)
    done, storage = len(finished_trials(optimizer.study)), redact_url(optimizer.studies.storage)
    _rows(
        "study", f"{optimizer.studies.name} in {storage}: {done} of {search.n_trials} trials done"
    )


def _text_notes(experiment: Experiment) -> list[str]:
    """What the tokenizer and the length limits do to the texts, on some of the validation rows."""
    recipe, tokenizer, rows = experiment.recipe, experiment.tokenizer, experiment.splits[1]
    draw, count = random.Random(recipe.data.seed), min(len(rows), _CHECKED_ROWS)
    drawn = {"validation": rows.rows(sorted(draw.sample(range(len(rows)), count)))}
    # A Rouge of its own: one that has seen these rows would choose its tokenizer by them.
    rouge = Rouge(**recipe.rouge.model_dump())
    inspection = inspect_data(drawn, tokenizer, recipe.data, 0, rouge, experiment.longest_output)
    note = pieces_note(tokenizer, recipe.data.special_tokens)
    return [*([note] if note else []), *inspection.warnings]


def _model_notes(experiment: Experiment) -> list[str]:
    recipe = experiment.recipe
    if recipe.model.name is None:
        return []  # It is made with as many embeddings as its tokenizer has tokens.
    notes = []
    rows = getattr(experiment.model_config, "vocab_size", 0)
    if note := spare_rows_note(experiment.tokenizer, rows):
        notes.append(note)
    if recipe.model.language is None and (code := language_of(experiment.tokenizer)):
        notes.append(f"all texts are marked as {code}; model.language sets another language")
    used = {*recipe.generation.settings(), *recipe.space}
    if ignored := foreign_settings(experiment.own_decoding, used):
        values = ", ".join(f"{name} {value}" for name, value in ignored.items())
        notes.append(
            f"not used of the checkpoint's own decoding: {values} (limits for other texts, or "
            "what no recipe may set)"
        )
    return notes


def _print_devices(n_workers: int) -> None:
    if n_workers > 1:
        _rows("workers", f"{n_workers}, each with its own trials on its own device")
    n_gpus, n_used = torch.cuda.device_count(), PartialState().num_processes * n_workers
    if n_gpus > n_used:
        _rows(
            "note",
            f"{n_used} of {n_gpus} GPUs are used, one by each process; to use all:",
            f"accelerate launch --num_processes {n_gpus}",
        )


def _print_warm_start(earlier: Mapping[str, Any]) -> None:
    taken, left_out = earlier["n_taken"], earlier["n_left_out"]
    others = "; the others do not fit it" if left_out else ""
    _rows(
        "earlier",
        f"{taken} of {taken + left_out} trials of '{earlier['study_name']}' in "
        f"{earlier['storage']} warm-start this search{others}",
    )


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
            _print_result(optimizer)


def _print_result(optimizer: OptunaOptimizer) -> None:
    recipe, first, final = optimizer.recipe, optimizer.study, optimizer.studies.final()
    if is_exhausted(first):
        count, wanted = len(finished_trials(first)), recipe.search.n_trials
        say(f"every combination has been tried, with {count} of {wanted} trials")
    best, several = best_trials(final), len(final.directions) > 1
    say(f"\nPareto front: {len(best)} trials" if several else "")
    for trial in best:
        pairs = zip(recipe.search.objectives, trial.values, strict=True)
        values = ", ".join(f"{name} {value:.4f}" for name, value in pairs)
        number, epoch = trained_trial_of(trial), trial.user_attrs[BEST_EPOCH]
        say(f"{'' if several else 'best '}trial {number}: {values} at epoch {epoch:g}")
        for line in _settings(values_of(trial)):
            say(f"  {line}")
        for line in summaries_in_words(trial.user_attrs.get(SUMMARIES)):
            say(line)
    start = baseline_trial(first)
    if not several and start is not None and best[0].values != start.values:
        stage = "" if final.study_name == first.study_name else ", decoded as in the first stage"
        say(f"trial {start.number}, the recipe's own values{stage}: {_change(start, best[0])}")
    files = [name for name in _SHOWN_FILES if (optimizer.output_dir / name).is_file()]
    if files:
        say(f"results in {optimizer.output_dir}: {', '.join(files)}")
    written = optimizer.output_dir / "recipe.yaml"
    _rows("next", command_line("train", written))
    _rows("then", predict_command(recipe, written))


def _change(start: FrozenTrial, best: FrozenTrial) -> str:
    """The value of a trial, and how much better the best one is."""
    before, after = start.values[0], best.values[0]
    change = f" (a change of {(after - before) / abs(before):+.0%})" if before else ""
    return f"{before:.4f}{change}"


def print_training_plan(retraining: Retraining) -> None:
    """Prints the trials, their values and the sizes of the data."""
    recipe, candidates = retraining.recipe, retraining.candidates
    for candidate in candidates:
        values = " ".join(f"{value:.4f}" for value in candidate.values)
        where = "in the first stage of the search" if candidate.own_decoding else "in the search"
        _rows("trial", f"{candidate.number} of {candidate.study_name}: {values} {where}")
        if candidate.own_decoding:
            _rows("", "no decoding of it was searched to the end: decoded as the recipe says")
        _rows("", *_settings(candidate.params))
        total = candidate.n_epochs(recipe)
        _rows("epochs", f"{candidate.epoch:g}, with the schedule of {total:g}")
    if len(candidates) == 1 and len(candidates[0].values) > 1 and not retraining.is_named:
        _rows("", "of the Pareto front the best in the first objective; --trial names another")
    train, validation = retraining.experiment.splits
    added = " and trained on, too" if recipe.train.use_validation else ""
    tested = f"{len(retraining.test)} to test on" if retraining.test else "none to test on"
    if recipe.data.test is None:
        tested = "no test split (data.test)"
    sizes = f"{len(train)} dialogues to train on, {len(validation)} to validate on{added}"
    _rows("data", f"{sizes}, {tested}")
    for note in retraining.notes:
        _rows("note", note)
    _rows("seeds", ", ".join(map(str, recipe.train.seeds)))


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
    _rows("next", predict_command(retraining.recipe, *words))


def print_prediction_plan(prediction: Prediction, notes: Sequence[str]) -> None:
    """Prints the model, its decoding and what is known of the data."""
    _rows("model", prediction.folder)
    _rows("decoding", prediction.summarizer.describe_decoding())
    _rows("input", f"dialogues are cut at {prediction.summarizer.max_dialogue_tokens} tokens")
    for note in notes:
        _rows("note", note)


def print_prediction_result(prediction: Prediction, scores: dict[str, Any] | None) -> None:
    """Prints the scores, where there are any, and where the summaries are."""
    if scores is not None:
        measures = {name: value for name, value in scores.items() if isinstance(value, float)}
        text = "  ".join(f"{name} {value:.4f}" for name, value in measures.items())
        _rows(
            "scores",
            f"{text}, on {scores['n_rows']} rows with references",
            f"in lower case, cut into tokens by '{scores['rouge_tokenizer']}'",
        )
    for line in summaries_in_words(prediction.description):
        say(line)
    say(f"summaries in {prediction.output}")
