"""Recipes: one YAML file, checked as a whole before anything is loaded."""

from hpo_summarize.recipe.given import as_recipe, with_settings
from hpo_summarize.recipe.load import dump_recipe, load_recipe, parse_recipe
from hpo_summarize.recipe.sections import (
    CategoricalParameter,
    DataSection,
    FloatParameter,
    GenerationSection,
    IntParameter,
    LoraSection,
    ModelSection,
    Parameter,
    PrunerSection,
    Recipe,
    SearchSection,
    TrainingSection,
    TrainSection,
)

__all__ = [
    "CategoricalParameter",
    "DataSection",
    "FloatParameter",
    "GenerationSection",
    "IntParameter",
    "LoraSection",
    "ModelSection",
    "Parameter",
    "PrunerSection",
    "Recipe",
    "SearchSection",
    "TrainSection",
    "TrainingSection",
    "as_recipe",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "with_settings",
]
