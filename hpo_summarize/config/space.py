"""One parameter of a search space: its values, and the conditions under which it acts."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    import optuna

Scalar = bool | int | float | str | None
LARGEST = 2**63 - 1  # Whole numbers above fit in no integer of NumPy, torch or a database.
_TOLERANCE = 1e-8  # Optuna's own for steps.


def is_number(value: Any) -> bool:
    """Whether a value is a number; a truth value is none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_among(value: Any, wanted: Iterable[Any]) -> bool:
    """Whether a value is one of `wanted`; a number is not a truth value, although `1 == True`."""
    return any(isinstance(value, bool) == isinstance(w, bool) and value == w for w in wanted)


@dataclass(frozen=True)
class Condition:
    """A parameter acts only while the value of `name` is one that `holds` accepts.

    Attributes:
        name: Another parameter, a fixed value or a fact of the model.
        holds: Whether it acts beside a value of `name`.
        text: The condition in words: `do_sample is True`.
    """

    name: str
    holds: Callable[[Any], bool]
    text: str

    @property
    def advice(self) -> str:
        """What to do about a setting where this never holds."""
        rule = f"it acts only while {self.text}, which never holds in this recipe"
        return f"{rule}; set or search {self.name}, or drop it"


def distinct(values: list[Any]) -> list[Any]:
    """The values, which differ as Optuna tells them apart: 1, 1.0 and true are equal."""
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise ValueError(f"every value must differ, and {twice[0]!r} is in {values!r} twice")
    return values


class _Parameter(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: str
    when: dict[str, Scalar | Annotated[list[Scalar], Field(min_length=1)]] = {}

    def conditions(self) -> list[Condition]:
        """The conditions under `when`."""
        return [Condition(n, *_one_of(n, wanted)) for n, wanted in self.wanted().items()]

    def wanted(self) -> dict[str, list[Any]]:
        """By name, the values under which this parameter acts."""
        return {n: w if isinstance(w, list) else [w] for n, w in self.when.items()}


def _one_of(name: str, wanted: list[Any]) -> tuple[Callable[[Any], bool], str]:
    text = f"{name} is {' or '.join(str(value) for value in wanted)}"
    return lambda value: is_among(value, wanted), text


class _Range(_Parameter):
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    log: bool = False
    step: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _can_be_sampled(self) -> _Range:
        low, high, step = self.low, self.high, self.step
        if not low < high:
            raise ValueError(f"low must be below high, got low {low} and high {high}")
        if self.log and low <= 0:
            raise ValueError(f"a log range starts above 0, got low {low}; raise low or drop log")
        if self.log and step not in (None, 1):
            raise ValueError(f"a log range takes no step, got step {step}; drop log or step")
        if step and not _is_whole((high - low) / step):
            # Optuna would lower `high` to the last step, and say so in a warning.
            raise ValueError(
                f"a whole number of steps must lead from low to high, got low {low}, high {high} "
                f"and step {step}; change high or step"
            )
        return self

    def edges(self) -> list[Any]:
        """The two ends."""
        return [self.low, self.high]

    def outside(self, value: Any) -> str | None:
        """Says why a value is none that a trial can have; None if it is one."""
        whole = isinstance(self, IntParameter)
        if not is_number(value) or (whole and not isinstance(value, int)):
            return f"must be a {'whole ' if whole else ''}number, got {value!r}"
        if not self.low <= value <= self.high:
            return f"must lie between {self.low:g} and {self.high:g}, got {value!r}"
        if self.step is not None and not _is_whole((value - self.low) / self.step):
            return f"must be {self.low:g} plus whole steps of {self.step:g}, got {value!r}"
        return None

    def nearest(self, value: Any) -> Any:
        """The value of the range nearest to `value`; its middle where that is no number."""
        low, high = self.low, self.high
        if not isinstance(value, int | float):
            value = (low * high) ** 0.5 if self.log else (low + high) / 2
        value = min(max(value, low), high)
        if self.step and not self.log:
            value = min(low + round((value - low) / self.step) * self.step, high)
        return round(value) if isinstance(self, IntParameter) else value

    def __str__(self) -> str:
        """The range as it is printed."""
        return f"{self.low:g} to {self.high:g}{', log' if self.log else ''}"


class FloatParameter(_Range):
    """A real number from `low` to `high`, both included; `log: true` samples its logarithm."""

    type: Literal["float"]

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Any:
        """Samples a value."""
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)


class IntParameter(_Range):
    """A whole number from `low` to `high`, both included."""

    type: Literal["int"]
    low: int = Field(ge=-LARGEST, le=LARGEST)
    high: int = Field(ge=-LARGEST, le=LARGEST)
    step: int = Field(default=1, ge=1)

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Any:
        """Samples a value."""
        return trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log)


class CategoricalParameter(_Parameter):
    """One of `choices`."""

    type: Literal["categorical"]
    choices: Annotated[list[Scalar], Field(min_length=1), AfterValidator(distinct)]

    def edges(self) -> list[Any]:
        """All choices."""
        return self.choices

    def outside(self, value: Any) -> str | None:
        """Says why a value is none that a trial can have; None if it is one."""
        if is_among(value, self.choices):
            return None
        return f"must be one of {self.choices!r}, got {value!r}"

    def nearest(self, value: Any) -> Any:
        """The value itself where it is a choice, or the nearest number, or the first choice."""
        if value in self.choices:
            return value
        numbers = [c for c in self.choices if isinstance(c, int | float)]
        if numbers and isinstance(value, int | float):
            return min(numbers, key=lambda choice: abs(choice - value))
        return self.choices[0]

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Any:
        """Samples a value."""
        return trial.suggest_categorical(name, self.choices)

    def __str__(self) -> str:
        """The choices as they are printed."""
        return "one of " + ", ".join(str(choice) for choice in self.choices)


Parameter = Annotated[
    FloatParameter | IntParameter | CategoricalParameter, Field(discriminator="type")
]
PARAMETER_TYPES: dict[str, type[FloatParameter | IntParameter | CategoricalParameter]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "categorical": CategoricalParameter,
}


def _is_whole(number: float) -> bool:
    return math.isclose(number, round(number), rel_tol=0, abs_tol=_TOLERANCE)
