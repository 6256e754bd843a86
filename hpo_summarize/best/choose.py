"""The trials that a final model is made of."""

from __future__ import annotations

from pathlib import Path

from hpo_summarize.best.candidate import Candidate
from hpo_summarize.best.fitting import checked
from hpo_summarize.best.searched import from_study
from hpo_summarize.best.written import read_candidates
from hpo_summarize.errors import RunStopped, StudyError
from hpo_summarize.experiment import Experiment
from hpo_summarize.recipe import Recipe
from hpo_summarize.redact import redact_url
from hpo_summarize.space import SearchSpace
from hpo_summarize.study import check_result, default_storage_url, find_study


def choose_candidates(
    experiment: Experiment, path: Path, top: int = 1, trial: int | None = None
) -> tuple[list[Candidate], list[str]]:
    """`find_candidates`, for the recipe of an experiment, which takes over their output length.

    Returns:
        The trials, and what a user should know of them, one sentence each.

    Raises:
        StudyError: As there; or the study, where it can be read, was made with another recipe.
        RecipeError: As there.
    """
    recipe = experiment.recipe
    found = find_candidates(recipe, experiment.whole_space, path, top, trial)
    experiment.adopt_length(found[0].max_new_tokens)
    storage = recipe.search.storage or default_storage_url(path.parent)
    name = found[0].study_name
    try:
        study = find_study(storage, name)
    except (StudyError, RunStopped):  # The folder of a search may be read-only.
        study = None
    if study is None:
        where = f"there is no study '{name}' to be read in {redact_url(storage)}"
        return found, [f"the recipe is not compared with the one of the search: {where}"]
    check_result(study, experiment.decided_recipe)
    return found, []


def find_candidates(
    recipe: Recipe,
    space: SearchSpace,
    path: Path,
    top: int = 1,
    trial: int | None = None,
) -> list[Candidate]:
    """The best trial of a search, its `top` best ones, or one by its number.

    With several objectives the trials of the Pareto front count, the best in the first objective
    first. Those of a staged search are its trained trials, each with one decoding.

    Args:
        recipe: The recipe of the search.
        space: The search space of the recipe, of both stages; every value must lie in it.
        path: `best_params.json`. What it does not hold is taken from the study that it names.
        top: At least 1.
        trial: Number of a finished trial; `top` has no say then.

    Raises:
        StudyError: The file or the study is not there, is damaged, or has no such trial.
        RecipeError: The trials are of another recipe; the message lists what does not fit.
    """
    candidates = read_candidates(path, recipe.search.direction == "maximize")
    folder, named_study = _folder_of_study(recipe, path), candidates[0].study_name
    if trial is not None:
        named = [one for one in candidates if one.number == trial]
        candidates = named or from_study(recipe, space, folder, named_study, trial)
    elif top > 1:
        if len(candidates[0].values) == 1:
            candidates = from_study(recipe, space, folder, named_study)
        if len(candidates) < top:
            raise StudyError(
                f"the {top} best trials are wanted, and the study '{named_study}' has "
                f"{len(candidates)} to choose from; lower --top, or search on"
            )
    chosen = candidates if trial is not None else candidates[:top]
    return [checked(one, recipe, space, path) for one in chosen]


def _folder_of_study(recipe: Recipe, path: Path) -> Path:
    """The folder of `best_params.json`; the recipe's own where that one holds no study."""
    return path.parent if (path.parent / "study.db").is_file() else Path(recipe.output_dir)
