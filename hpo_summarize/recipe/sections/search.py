"""The study."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hpo_summarize.errors import did_you_mean
from hpo_summarize.recipe.sections.base import OpenSection, Scalar, Section

OBJECTIVES = ("rouge1", "rouge2", "rougeL")


class SamplerSection(OpenSection):
    """A sampler of `optuna.samplers` by its short name; other keys are its arguments."""

    name: str = "tpe"
    seed: int | None = Field(default=42, ge=0, lt=2**32)


class PrunerSection(OpenSection):
    """A pruner of `optuna.pruners` by its short name; other keys are its arguments.

    A step is an epoch.
    """

    name: str = "median"


class EpochEvalSection(Section):
    """What is measured after each epoch of a trial, to compare trials and to prune them.

    The value of a trial is always that of its best epoch with its own decoding on all rows; it is
    measured once, at its end, where it can still be among the best.

    Attributes:
        samples: Number of validation rows, drawn once by `data.seed`; `all` takes every row.
        num_beams: Number of beams, without sampling; `same` decodes with the trial's own settings.
            With `all` and `same` every epoch is measured in full.
    """

    samples: Annotated[int, Field(ge=2)] | Literal["all"] = 128
    num_beams: Annotated[int, Field(ge=1)] | Literal["same"] = 1


class StagedSection(Section):
    """The second stage of `decode: staged`.

    Attributes:
        n_models: Number of best trained models that take part, and whose weights are kept.
        n_trials: Finished trials wanted in this stage; one costs an evaluation or a part of it.
    """

    n_models: int = Field(default=3, ge=1)
    n_trials: int = Field(default=20, ge=1)


class SearchSection(Section):
    """The study.

    Attributes:
        n_trials: Finished trials wanted in all, over every run of the same command.
        timeout: Seconds after which no new trial starts; null: none. A staged search leaves a
            fifth of them to its second stage.
        objective: A metric, or a list of metrics for several objectives (no pruning then).
        epoch_eval: The evaluation after each epoch.
        decode: `joint` samples decoding with everything else; `staged` first searches the training
            with the decoding of `epoch_eval`, then decoding alone on the best trained models.
        staged: The second stage.
        storage: Storage URL; null: SQLite in the output folder.
        study_name: Name of the study in its storage; null: the name of the recipe file.
        baselines: Known good values by name, each the values of one trial after trial 0; what one
            of them leaves out is as in trial 0. The second stage of a staged search tries those of
            the decoding on each of its models.
        warm_start: Storage URL of an earlier study of the same recipe but for its space, whose
            finished trials teach the new one; they do not count, and are never its best.
        warm_start_study: Name of that study; null: the only one of its storage.
        keep_trials: Number of best trials whose weights are kept; a staged search keeps at least
            `staged.n_models`.
        parallel: What several processes of one launch do: `trials`, each its own ones on its own
            device; `ddp`, all of them train one trial together.
    """

    n_trials: int = Field(default=50, ge=1)
    timeout: float | None = Field(default=None, gt=0)
    objective: str | list[str] = "rougeL"
    direction: Literal["maximize", "minimize"] = "maximize"
    sampler: SamplerSection = SamplerSection()
    pruner: PrunerSection | None = PrunerSection()
    epoch_eval: EpochEvalSection = EpochEvalSection()
    decode: Literal["joint", "staged"] = "joint"
    staged: StagedSection = StagedSection()
    storage: str | None = None
    # Also the name of a folder, which `.` and `..` are not.
    study_name: (
        Annotated[str, Field(pattern=r"^\.*[A-Za-z0-9_-][A-Za-z0-9._-]*$", max_length=64)] | None
    ) = None
    baselines: list[Annotated[dict[str, Scalar], Field(min_length=1)]] = []
    warm_start: str | None = Field(default=None, min_length=1)
    warm_start_study: str | None = Field(default=None, min_length=1)
    keep_trials: int = Field(default=1, ge=0)
    parallel: Literal["trials", "ddp"] = "trials"

    @field_validator("objective")
    @classmethod
    def _known_objectives(cls, value: str | list[str]) -> str | list[str]:
        names = [value] if isinstance(value, str) else value
        wrong = [name for name in names if name not in OBJECTIVES]
        if wrong or not names or len(set(names)) != len(names):
            rule = f"must be one of {', '.join(OBJECTIVES)}, or a list of different ones"
            nearest = did_you_mean(wrong[0], OBJECTIVES) if wrong else ""
            raise ValueError(f"{rule}, got {value!r}{nearest}")
        return value

    @model_validator(mode="after")
    def _study_of_storage(self) -> SearchSection:
        if self.warm_start_study is not None and self.warm_start is None:
            raise ValueError(
                f"warm_start_study names a study ({self.warm_start_study!r}), and warm_start, the "
                "URL of its storage, is not set; set it, or remove warm_start_study"
            )
        return self

    @property
    def n_kept(self) -> int:
        """Number of best trials whose weights are kept."""
        return max(self.keep_trials, self.staged.n_models if self.decode == "staged" else 0)

    @property
    def objectives(self) -> list[str]:
        """The objectives as a list, also where there is one."""
        return [self.objective] if isinstance(self.objective, str) else list(self.objective)
