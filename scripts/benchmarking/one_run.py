"""One search of a benchmark, in a process of its own.

    python -m benchmarking.one_run OUTPUT METHOD SEED

writes `OUTPUT/runs/METHOD-SEED.json`, and what the winner writes for the test split to
`OUTPUT/winners/METHOD-SEED.json`.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarking.clocks import Samples, Time
from benchmarking.machine import describe_machine
from benchmarking.methods import METHODS, Found, Job
from benchmarking.observation import Observation
from benchmarking.setting import read_setting, run_path, texts_path
from optuna.trial import FrozenTrial, TrialState
from transformers import AutoModelForSeq2SeqLM

from hpo_summarize.cli import run
from hpo_summarize.components import Experiment
from hpo_summarize.config.parameters import split_by_owner
from hpo_summarize.data.dialogues import Dialogues
from hpo_summarize.data.splits import read_dialogues
from hpo_summarize.generation import Summaries, clear_idle_flags
from hpo_summarize.io import write_text
from hpo_summarize.launch.workers import end_with_parent
from hpo_summarize.study.user_attrs import EPOCH_VALUE, FAILURE
from hpo_summarize.summarizer import make_summarizer, summarize_all


def run_method(output_dir: Path, method: str, seed: int) -> dict[str, Any]:
    """Searches with one method, measures its winner, and writes and returns the record of both.

    Args:
        output_dir: A folder that `prepare` has made.
        method: A key of `METHODS`.
        seed: Seed of the sampler and of the training.
    """
    recipe = read_setting(output_dir, seed)
    folder = output_dir / "work" / f"{method}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)  # Of a run that was cut off: its times are lost.
    folder.mkdir(parents=True)
    with Observation() as observation:
        job = Job(recipe, folder, observation)
        found = METHODS[method](job)
    record = {
        "method": method,
        "seed": seed,
        **describe_machine(),
        **_search_record(observation, found),
        **_winner_record(Experiment(recipe), found),
    }
    texts = record.pop("texts")
    write_text(texts_path(output_dir, method, seed), json.dumps(texts, indent=0))
    write_text(run_path(output_dir, method, seed), json.dumps(record, indent=1))
    shutil.rmtree(folder)
    return record


def _search_record(observation: Observation, found: Found) -> dict[str, Any]:
    samples = observation.samples
    return {
        "wall_seconds": observation.total.wall,
        "cpu_seconds": observation.total.cpu,
        "spent": {name: vars(part) for name, part in observation.spent.items()},
        "n_evaluations": observation.n_evaluations,
        "n_generated_tokens": observation.n_tokens,
        "n_generate_calls_without_cache": observation.without_cache,
        "most_models_alive": observation.most_models,
        "most_optimizers_alive": observation.most_optimizers,
        "megabytes_before": samples.memory_before,
        "megabytes_peak": samples.peak_memory,
        "trainings": [
            {"n_steps": t.n_steps, "steps_taken": len(t.rates), "warmup_steps": t.warmup_steps}
            for t in observation.trainings
        ],
        "trials": [_trial_record(trial, samples) for trial in found.trials],
    }


def _trial_record(trial: FrozenTrial, samples: Samples) -> dict[str, Any]:
    ended = trial.datetime_complete
    end = Time() if ended is None else samples.at(ended.timestamp())
    state = "FAIL" if FAILURE in trial.user_attrs else trial.state.name
    return {
        "number": trial.number,
        "state": state,
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "params": trial.params,
        "reports": {str(step): value for step, value in trial.intermediate_values.items()},
        "epoch_value": trial.user_attrs.get(EPOCH_VALUE),
        "end": vars(end),
    }


def _winner_record(experiment: Experiment, found: Found) -> dict[str, Any]:
    """The winner's kept weights, measured by one and the same code for every method."""
    section, (_, validation) = experiment.recipe.data, experiment.splits
    test = read_dialogues(section.test or [], section)
    on_validation, on_test = (summarise(experiment, found, one) for one in (validation, test))
    return {
        "best_value": found.value,
        "best_params": found.params,
        "validation": experiment.score(on_validation.texts, validation.references),
        "test": experiment.score(on_test.texts, test.references),
        "summaries": on_test.describe(),
        "texts": dict(zip(test.ids, on_test.texts, strict=True)),
    }


def summarise(experiment: Experiment, found: Found, split: Dialogues) -> Summaries:
    """What the winner of a search writes for a split, decoded with its own settings."""
    model = AutoModelForSeq2SeqLM.from_pretrained(found.weights)
    model.generation_config.update(**split_by_owner(found.params)["generation"])
    clear_idle_flags(model.generation_config)
    limit = experiment.recipe.data.max_dialogue_tokens
    summarizer = make_summarizer(model, experiment.tokenizer, limit, experiment.recipe)
    return summarize_all(summarizer, split.dialogues)


def main() -> None:
    """Runs what the command line names."""
    output_dir, method, seed = sys.argv[1:]
    run_method(Path(output_dir), method, int(seed))


if __name__ == "__main__":
    end_with_parent(os.getppid())
    run(main)
