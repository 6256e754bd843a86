"""Training, decoding and scoring with fixed values, and the final training."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hpo_summarize.recipe.sections.base import OpenSection, Section


class TrainingSection(OpenSection):
    """Fixed training values; other keys are fields of `Seq2SeqTrainingArguments`."""

    num_epochs: float = Field(default=3, gt=0)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=5e-5, gt=0)
    warmup_ratio: float = Field(default=0.0, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=0.0, ge=0.0)
    scheduler_type: str = "linear"


class GenerationSection(OpenSection):
    """Fixed decoding values; other keys are fields of `GenerationConfig`.

    Attributes:
        max_new_tokens: Most tokens of a generated summary; null: a tenth more than 99.5% of the
            training references need, decided once a study.
    """

    max_new_tokens: int | None = Field(default=None, ge=1)


class RougeSection(Section):
    """How summaries are scored."""

    tokenizer: Literal["auto", "default", "unicode", "character", "kiwi", "mecab"] = "auto"
    references: Literal["mean", "max"] = "mean"


class TrainSection(Section):
    """The training of the final model with the values that a search has found.

    Attributes:
        seeds: One training for each; the seed takes the place of `training.seed`. The model with
            the best validation score is kept.
        use_validation: Train on the validation split, too. Nothing is left then to choose a model
            by, so there is one seed.
        save_adapter: Write the LoRA adapter beside the merged weights.
        push_to_hub: Id of the repository on the Hub that gets the model, with the token in the
            environment variable HF_TOKEN; null: none. A new repository is private.
    """

    seeds: list[Annotated[int, Field(ge=0, lt=2**32)]] = Field(default=[42], min_length=1)
    use_validation: bool = False
    save_adapter: bool = False
    push_to_hub: str | None = None

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError(f"a seed stands there twice, and would train the same: got {value!r}")
        return value

    @field_validator("push_to_hub")
    @classmethod
    def _repository_id(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", value, re.ASCII):
            raise ValueError(f"must be a repository on the Hub, as in user/model, got {value!r}")
        return value

    @model_validator(mode="after")
    def _choosable(self) -> TrainSection:
        if self.use_validation and len(self.seeds) > 1:
            raise ValueError(
                f"with use_validation nothing is left to choose among {len(self.seeds)} seeds by; "
                "give one seed, or set use_validation to false"
            )
        return self
