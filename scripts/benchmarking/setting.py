"""What all methods of a benchmark share: data, model, space, trials."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import dump_recipe, load_recipe, parse_recipe
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import Problem, RecipeError
from hpo_summarize.models.factory import build_model
from hpo_summarize.search_space import TrialSpec

RECIPE, START = "recipe.yaml", "start"
_N_TRIALS = 20

# The space of the benchmark where no recipe is given.
SPACE: dict[str, dict[str, Any]] = {
    "learning_rate": {"type": "float", "low": 3e-4, "high": 1e-2, "log": True},
    "batch_size": {"type": "categorical", "choices": [8, 16, 32]},
    "num_epochs": {"type": "int", "low": 2, "high": 6},
    "warmup_ratio": {"type": "float", "low": 0.0, "high": 0.2},
    "weight_decay": {"type": "float", "low": 0.0, "high": 0.1},
    "scheduler_type": {"type": "categorical", "choices": ["linear", "cosine"]},
    "hidden_dropout": {"type": "float", "low": 0.0, "high": 0.3},
    "num_beams": {"type": "categorical", "choices": [1, 2, 4, 6, 8]},
    "length_penalty": {"type": "float", "low": 0.5, "high": 2.0},
}
_TRAINING = {
    "num_epochs": 4,
    "batch_size": 16,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "per_device_train_batch_size": 32,
}
_GENERATION = {
    "num_beams": 4,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 3,
    "max_new_tokens": 64,
}
_SMALL_BART = {
    "model_type": "bart",
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "max_position_embeddings": 512,
    "vocab_size": 2000,
    # About 1 / sqrt(d_model): with BART's 0.02, made for 1,024 dimensions, the decoder never looks
    # at the encoder.
    "init_std": 0.12,
}
# Stock and ours prune alike, as far as a step means the same to both.
_PRUNER = {"name": "median", "n_startup_trials": 5, "n_warmup_steps": 3, "interval_steps": 1}


def quickstart_content(folder: Path) -> dict[str, Any]:
    """A recipe for the shipped corpus and checkpoint, all weights trained.

    Args:
        folder: The folder `recipes/quickstart`.
    """
    files = {name: str(folder / f"{name}.csv") for name in ("train", "validation", "test")}
    data = {**files, "max_dialogue_tokens": 256, "max_summary_tokens": 64}
    return _content({"name": str(folder / "checkpoint")}, data)


def csv_content(data: str, test: str | None) -> dict[str, Any]:
    """A recipe for the user's data: a small BART of random weights, a fifth set aside.

    Args:
        data: File with the dialogues and summaries to train and validate on.
        test: File for the last measurement; several summary columns are several references.
    """
    section = {"train": data, "test": test, "validation_fraction": 0.2}
    lengths = {"max_dialogue_tokens": 256, "max_summary_tokens": 64}
    return _content({"from_config": _SMALL_BART}, {**section, **lengths})


def _content(model: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "model": dict(model),
        "data": dict(data),
        "training": dict(_TRAINING),
        "generation": dict(_GENERATION),
        "search": {"pruner": dict(_PRUNER)},
        "space": SPACE,
        "output_dir": "outputs/benchmark",
    }


def choose_recipe(
    quickstart: Path, data: str | None, test: str | None, recipe: str | None, n_trials: int | None
) -> Recipe:
    """The recipe of a benchmark, from its command line.

    Args:
        quickstart: The folder `recipes/quickstart`; its corpus is the default.
        data: File of the user's data.
        test: File of the test split.
        recipe: File of a recipe in the place of all that.
        n_trials: Trials of each search. Default: the recipe's, or 20.

    Raises:
        RecipeError: It is wrong, or asks for something that not every method can do.
    """
    if recipe and data:
        message = f"stands in the place of --data, and both are given ({recipe}, {data})"
        raise RecipeError([Problem("--recipe", f"{message}; leave one out")])
    if test and not recipe and not data:
        message = f"the quick start has a test split of its own, got {test!r}; give --data, too"
        raise RecipeError([Problem("--test", message)])
    content = quickstart_content(quickstart)
    if data:
        content = csv_content(data, test)
    elif recipe:
        content = load_recipe(recipe).model_dump(exclude_unset=True)
        content["data"] |= {"test": test} if test else {}
    trials = {} if n_trials is None else {"n_trials": n_trials}
    content["search"] = {
        **({} if recipe else {"n_trials": _N_TRIALS}),
        **content["search"],
        **trials,
    }
    return check_recipe(parse_recipe(content))


def check_recipe(recipe: Recipe) -> Recipe:
    """The recipe itself, where every method can run it.

    Raises:
        RecipeError: It has LoRA, several objectives or no test split, or keeps no weights.
    """
    problems = []
    if recipe.lora is not None:
        message = "the methods are compared with all weights trained; set it to null"
        problems.append(Problem("lora", message))
    if len(recipe.search.objectives) > 1:
        given = recipe.search.objectives
        message = f"the methods are compared by one objective, got {given!r}; name one"
        problems.append(Problem("search.objective", message))
    if recipe.search.keep_trials < 1:
        message = "the weights of the winner are measured again, got 0; keep 1 or more"
        problems.append(Problem("search.keep_trials", message))
    if recipe.data.test is None:
        message = "the winners are compared on a test split; give its file with --test"
        problems.append(Problem("data.test", message))
    if problems:
        raise RecipeError(problems)
    return recipe


def prepare(recipe: Recipe, output_dir: Path) -> None:
    """Writes the recipe, and the model and tokenizer from which every trial of a method starts.

    What a folder already holds is left as it is, and the benchmark goes on there.

    Raises:
        RecipeError: The folder holds a benchmark of another recipe, or cannot be written.
    """
    text, path = dump_recipe(recipe), output_dir / RECIPE
    if path.exists() and path.read_text(encoding="utf-8") != text:
        message = f"{output_dir} holds a benchmark of another recipe or number of trials"
        raise RecipeError([Problem("--output", f"{message}; choose another folder")])
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if not (output_dir / START).exists():
            _write_start(recipe, output_dir / START)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"{output_dir} cannot be written ({error.strerror}); choose another folder"
        raise RecipeError([Problem("--output", message)]) from None


def run_path(output_dir: Path, method: str, seed: int) -> Path:
    """Where the record of a run is."""
    return output_dir / "runs" / f"{method}-{seed}.json"


def texts_path(output_dir: Path, method: str, seed: int) -> Path:
    """Where the summaries are that the winner of a run writes for the test split, by row id."""
    return output_dir / "winners" / f"{method}-{seed}.json"


def _write_start(recipe: Recipe, folder: Path) -> None:
    experiment = Experiment(recipe)
    torch.manual_seed(0)
    model = build_model(recipe, experiment.tokenizer, TrialSpec.of({}))
    half = folder.with_name(f"{folder.name}.half")
    shutil.rmtree(half, ignore_errors=True)
    model.save_pretrained(str(half))
    experiment.tokenizer.save_pretrained(half)
    half.rename(folder)


def read_setting(output_dir: Path, seed: int) -> Recipe:
    """The recipe of a prepared benchmark for one seed, which is the sampler's and the training's.

    Its model is the one that `prepare` wrote.
    """
    settings = {
        "model": {"name": str(output_dir / START)},
        "training.seed": seed,
        "search.sampler.seed": seed,
        "search.study_name": "benchmark",
        "search.storage": None,  # In the folder of the run, which begins with nothing.
        "search.timeout": None,
    }
    return load_recipe(output_dir / RECIPE, settings=settings)
