"""The typed form of a recipe: one frozen class a section."""

from hpo_summarize.recipe.sections.base import OpenSection, Scalar, Section
from hpo_summarize.recipe.sections.data import DataSection
from hpo_summarize.recipe.sections.model import LoraSection, ModelSection
from hpo_summarize.recipe.sections.search import (
    OBJECTIVES,
    EpochEvalSection,
    PrunerSection,
    SamplerSection,
    SearchSection,
    StagedSection,
)
from hpo_summarize.recipe.sections.space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    Parameter,
)
from hpo_summarize.recipe.sections.training import (
    GenerationSection,
    RougeSection,
    TrainingSection,
    TrainSection,
)
from hpo_summarize.recipe.sections.whole import Recipe

__all__ = [
    "CategoricalParameter",
    "DataSection",
    "EpochEvalSection",
    "FloatParameter",
    "GenerationSection",
    "IntParameter",
    "LoraSection",
    "ModelSection",
    "OBJECTIVES",
    "OpenSection",
    "Parameter",
    "PrunerSection",
    "Recipe",
    "RougeSection",
    "SamplerSection",
    "Scalar",
    "SearchSection",
    "Section",
    "StagedSection",
    "TrainSection",
    "TrainingSection",
]
