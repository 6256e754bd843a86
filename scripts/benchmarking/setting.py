"""What all methods of a benchmark share: data, model, space, trials."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import dump_recipe, load_recipe
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import Problem, RecipeError
from hpo_summarize.models.factory import build_model
from hpo_summarize.search_space import TrialSpec

RECIPE, START = "recipe.yaml", "start"
# Data, space and fixed values where no recipe is given, but for the files.
_OWN_RECIPE = Path(__file__).with_name("recipe.yaml")
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
    # About 1 / sqrt(d_model): with BART's 0.02, made for 1,024 dimensions, the decoder ignores the
    # encoder.
    "init_std": 0.12,
}


def choose_recipe(
    quickstart: Path, data: str | None, test: str | None, recipe: str | None, n_trials: int | None
) -> Recipe:
    """The recipe of a benchmark, from its command line.

    Args:
        quickstart: The folder `recipes/quickstart`; its corpus and checkpoint are the default.
        data: File of the user's data: a small BART of random weights is trained on it, and a fifth
            is split off for validation.
        test: File of the test split; several summary columns are several references.
        recipe: File of a recipe instead.
        n_trials: Trials of each search. Default: the recipe's, or 20.

    Raises:
        RecipeError: It is wrong, or asks for something that not every method can do.
    """
    if recipe and data:
        message = f"replaces --data, and both are given ({recipe}, {data})"
        raise RecipeError([Problem("--recipe", f"{message}; leave one out")])
    if test and not recipe and not data:
        message = f"the quick start has a test split of its own, got {test!r}; give --data, too"
        raise RecipeError([Problem("--test", message)])
    settings: dict[str, Any] = {}
    if data:
        settings = {"model": {"from_config": _SMALL_BART}, "data.train": data}
        settings["data.validation_fraction"] = 0.2
    elif not recipe:
        settings = {"model": {"name": str(quickstart / "checkpoint")}}
        names = ("train", "validation", "test")
        settings |= {f"data.{name}": str(quickstart / f"{name}.csv") for name in names}
    settings |= {"data.test": test} if test else {}
    settings |= {"search.n_trials": n_trials} if n_trials is not None else {}
    return check_recipe(load_recipe(recipe or _OWN_RECIPE, settings=settings))


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

    A folder with the same recipe is continued.

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
        "search.storage": None,  # In the empty folder of the run.
        "search.timeout": None,
    }
    return load_recipe(output_dir / RECIPE, settings=settings)
