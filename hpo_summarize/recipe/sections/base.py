"""What all sections of a recipe have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

Scalar = bool | int | float | str | None


class Section(BaseModel):
    """Unknown keys are refused, and a value is never converted into another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OpenSection(Section):
    """A section that also takes every field of a Hugging Face class; `checks` looks at those."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    def settings(self) -> dict[str, Any]:
        """The values that the recipe gives, by key; keys that it leaves out are left out."""
        return {key: value for key, value in self if key in self.model_fields_set}
