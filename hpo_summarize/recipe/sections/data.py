"""The dialogues and their summaries."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hpo_summarize.recipe.sections.base import Section


class DataSection(Section):
    """The dialogues and their summaries; `name` or `train`, or else data sets given in Python.

    Attributes:
        name: A folder, or the id of a data set on the Hub; null: `train` names files. A private
            one is read with the token in the environment variable HF_TOKEN.
        config: Configuration of that data set.
        revision: Branch, tag or commit on the Hub.
        train: File (CSV, TSV, JSON, JSON Lines, Parquet; relative to the current directory, or
            `hf://datasets/...`), glob, or list of them; with `name`, its split (default train).
        validation: Files or split of the validation rows, written as for `train`; null takes the
            validation split of `name`, or else `validation_fraction` of the training rows, seeded.
        test: Files or split of the test rows, written as for `train`; never read by a search.
        dialogue_column: Column of the dialogue; null: the usual names are looked for.
        summary_column: Column of the summary, or a list of columns with one reference each; null:
            the usual names are looked for.
        id_column: Column that tells rows apart; null: `fname` or `id`, or else the row number.
        encoding: Encoding of text files, by its Python name.
        separator: Separator of CSV and TSV files, one character; null: comma and tab.
        empty_rows: What is done about rows without a dialogue or a summary.
        leaks: What is done about dialogues that stand in the training and in the validation split,
            or in the test split of a final model.
        max_dialogue_tokens: Most tokens of a dialogue, with the up to two that a tokenizer adds;
            longer ones are cut at the end.
        max_summary_tokens: Most tokens of a training summary; longer ones are cut. References for
            ROUGE are not.
        special_tokens: Words that are added to the vocabulary where missing, as whole tokens; not
            where the tokenizer would then lose the spaces around them (sentencepiece).
        max_rows: Number of rows, the first ones, that are kept of each split; null: all.
    """

    name: str | None = Field(default=None, min_length=1)
    config: str | None = None
    revision: str | None = None
    train: str | list[str] | None = None
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    validation_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    dialogue_column: str | None = None
    summary_column: str | list[str] | None = None
    id_column: str | None = None
    encoding: str = "utf-8"
    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    empty_rows: Literal["refuse", "drop"] = "refuse"
    leaks: Literal["warn", "refuse"] = "warn"
    max_dialogue_tokens: int = Field(default=512, ge=4)
    max_summary_tokens: int = Field(default=100, ge=4)
    special_tokens: list[Annotated[str, Field(min_length=1)]] = ["#Person1#", "#Person2#"]
    max_rows: int | None = Field(default=None, ge=2)
    seed: int = Field(default=42, ge=0, lt=2**32)

    @field_validator("train", "validation", "test", "summary_column")
    @classmethod
    def _not_empty(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value is not None and not value:
            raise ValueError(f"must name at least one, got {value!r}; leave the key out instead")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "a".encode(value)
        except LookupError:
            raise ValueError(
                f"there is no encoding {value!r}; common are utf-8, cp949 and utf-16"
            ) from None
        return value

    @field_validator("separator")
    @classmethod
    def _usable_separator(cls, value: str | None) -> str | None:
        if value is not None and value in ' "\r\n\0':
            raise ValueError(f"{value!r} cannot separate cells; common are ',', ';' and '\\t'")
        return value

    @model_validator(mode="after")
    def _acts_on_a_data_set(self) -> DataSection:
        for key in ("config", "revision"):
            if self.name is None and getattr(self, key) is not None:
                raise ValueError(f"{key} acts on a data set, and name is not set; remove {key}")
        return self
