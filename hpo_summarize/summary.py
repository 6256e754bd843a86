"""What the search prints before its first trial and after its last one."""

from __future__ import annotations

import random

import torch
from accelerate import PartialState

from hpo_summarize.attributes import BEST_EPOCH, SUMMARIES, WARM_START
from hpo_summarize.cli import command_line, predict_command
from hpo_summarize.decoding import summaries_in_words
from hpo_summarize.errors import UnwrittenResults
from hpo_summarize.experiment import Experiment
from hpo_summarize.inspection import inspect_data
from hpo_summarize.model import language_of, pieces_note, spare_rows_note
from hpo_summarize.optimizer import OptunaOptimizer
from hpo_summarize.recipe.generation_checks import foreign_settings
from hpo_summarize.redact import redact_url
from hpo_summarize.results.outcome import trained_trial_of
from hpo_summarize.rouge import Rouge
from hpo_summarize.space import build_space
from hpo_summarize.study import (
    baseline_trial,
    best_trials,
    finished_trials,
    is_exhausted,
    values_of,
)

_CHECKED_ROWS = 500
_SHOWN_FILES = ("report.html", "best_params.json", "all_trials.csv")


def print_plan(optimizer: OptunaOptimizer) -> None:
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
        print_result(optimizer)
        raise
    print_result(optimizer)


def print_result(optimizer: OptunaOptimizer) -> None:
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
