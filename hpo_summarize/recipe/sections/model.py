"""Where the model comes from, and its adapters."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from hpo_summarize.recipe.sections.base import OpenSection, Section


class ModelSection(Section):
    """Where the model comes from: a checkpoint (`name`) or a fresh one (`from_config`).

    Attributes:
        name: Hub id or folder of a checkpoint.
        from_config: Fields of a model configuration, `model_type` among them; random weights.
        tokenizer: Hub id or folder; default the checkpoint's own. With `from_config` and no
            tokenizer, one is trained on the training split.
        language: Code of the language of all texts (`ko_KR`), where the tokenizer marks languages,
            as mBART's does. Default: its source language.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Run code that comes with the checkpoint; never asked for, only set here.
    """

    name: str | None = Field(default=None, min_length=1)
    from_config: dict[str, Any] | None = None
    tokenizer: str | None = Field(default=None, min_length=1)
    language: str | None = Field(default=None, min_length=1)
    revision: str | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSection:
        if (self.name is None) == (self.from_config is None):
            both = "both are set" if self.name is not None else "neither is set"
            raise ValueError(
                f"exactly one of name and from_config must be given and {both}; "
                "set the other one to null"
            )
        if self.from_config is not None and "model_type" not in self.from_config:
            raise ValueError("from_config needs model_type, for example 'bart' or 't5'")
        return self


class LoraSection(OpenSection):
    """Low-rank adapters; other keys are fields of `peft.LoraConfig`."""

    r: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: str | list[str] = "all-linear"
