"""What is searched: one parameter by its name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from hpo_summarize.recipe.sections.base import Scalar, Section


class _Parameter(Section):
    when: dict[str, Scalar | Annotated[list[Scalar], Field(min_length=1)]] = {}


class FloatParameter(_Parameter):
    """A real number from `low` to `high`, both included; `log: true` samples its logarithm."""

    type: Literal["float"]
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    step: float | None = Field(default=None, gt=0)


class IntParameter(_Parameter):
    """A whole number from `low` to `high`, both included."""

    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: int = Field(default=1, ge=1)


class CategoricalParameter(_Parameter):
    """One of `choices`."""

    type: Literal["categorical"]
    choices: list[Scalar] = Field(min_length=1)

    @field_validator("choices")
    @classmethod
    def _distinct(cls, value: list[Scalar]) -> list[Scalar]:
        # By their values, as Optuna tells them apart: 1, 1.0 and true are one choice.
        twice = [choice for index, choice in enumerate(value) if choice in value[:index]]
        if twice:
            raise ValueError(
                f"every choice must differ, and {twice[0]!r} stands twice in {value!r}"
            )
        return value


Parameter = Annotated[
    FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")
]
