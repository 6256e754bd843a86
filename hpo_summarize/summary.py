"""What the search prints before its first trial and after its last one."""

from __future__ import annotations

from hpo_summarize.attributes import BEST_EPOCH
from hpo_summarize.optimizer import OptunaOptimizer
from hpo_summarize.redact import redact_url
from hpo_summarize.study import best_trials, finished_trials, is_exhausted


def print_plan(optimizer: OptunaOptimizer) -> None:
    """Prints what is going to run: model, data, space, storage, trials done and to do."""
    if not optimizer.writer.is_here():
        return
    recipe, experiment = optimizer.recipe, optimizer.experiment
    train, validation = experiment.splits
    done, search = len(finished_trials(optimizer.study)), recipe.search
    lora = "LoRA" if recipe.lora else "all weights"
    storage = redact_url(optimizer.storage)
    print(f"model    {recipe.model.name or experiment.model_config.model_type}, training {lora}")
    print(f"data     {len(train)} dialogues to train on, {len(validation)} to validate on")
    for note in (*train.notes, *validation.notes):
        print(f"note     {note}")
    print(f"search   {' and '.join(search.objectives)}, {search.direction}")
    if len(search.objectives) > 1:
        print("         several objectives: no trial is pruned, and the result is a Pareto front")
    for line in experiment.space.explain():
        print(f"         {line}")
    if optimizer.worker.count > 1:
        print(f"workers  {optimizer.worker.count}, each with its own trials on its own device")
    print(f"study    {optimizer.study_name} in {storage}: {done} of {search.n_trials} trials done")


def print_result(optimizer: OptunaOptimizer) -> None:
    """Prints the best trial or the Pareto front, and where the results are."""
    if not optimizer.writer.is_here():
        return
    study, names = optimizer.study, optimizer.recipe.search.objectives
    if is_exhausted(study):
        count, wanted = len(finished_trials(study)), optimizer.recipe.search.n_trials
        print(f"every combination has been tried, with {count} of {wanted} trials")
    best = best_trials(study)
    several = len(study.directions) > 1
    print(f"\nPareto front: {len(best)} trials" if several else "")
    for trial in best:
        values = ", ".join(f"{n} {v:.4f}" for n, v in zip(names, trial.values, strict=True))
        epoch = trial.user_attrs[BEST_EPOCH]
        print(f"{'' if several else 'best '}trial {trial.number}: {values} at epoch {epoch:g}")
        for name, value in trial.params.items():
            print(f"  {name}: {value:.6g}" if isinstance(value, float) else f"  {name}: {value}")
    first = study.trials[0]
    if not several and best[0].number > 0 and first.values:
        gain = (best[0].value - first.values[0]) / abs(first.values[0] or 1)
        print(f"trial 0, the recipe's own values: {first.values[0]:.4f} (a change of {gain:+.0%})")
    print(f"results in {optimizer.output_dir}: report.html, best_params.json, all_trials.csv")
