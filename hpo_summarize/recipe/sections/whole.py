"""All sections of a recipe, in the order of the YAML file."""

from __future__ import annotations

from pydantic import Field

from hpo_summarize.recipe.sections.base import Section
from hpo_summarize.recipe.sections.data import DataSection
from hpo_summarize.recipe.sections.model import LoraSection, ModelSection
from hpo_summarize.recipe.sections.search import SearchSection
from hpo_summarize.recipe.sections.space import Parameter
from hpo_summarize.recipe.sections.training import (
    GenerationSection,
    RougeSection,
    TrainingSection,
    TrainSection,
)


class Recipe(Section):
    """One run: everything that the search, the training and the prediction need to know."""

    model: ModelSection
    lora: LoraSection | None = None
    data: DataSection = DataSection()
    training: TrainingSection = TrainingSection()
    generation: GenerationSection = GenerationSection()
    rouge: RougeSection = RougeSection()
    search: SearchSection = SearchSection()
    train: TrainSection = TrainSection()
    space: dict[str, Parameter] = {}
    output_dir: str = Field(min_length=1)
