"""The typed form of a recipe: one frozen class for each section, in the order of the YAML file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from hpo_summarize.config.parameters import (
    WORDS_OF_LORA_KEYS,
    Count,
    Fraction,
    NotNegative,
    Positive,
    Seed,
    default_values,
)
from hpo_summarize.config.space import Parameter, Scalar, distinct

Text = Annotated[str, Field(min_length=1)]
Objective = Literal["rouge1", "rouge2", "rougeL"]
Files = Text | Annotated[list[str], Field(min_length=1)]


class Section(BaseModel):
    """Unknown keys are refused, and a value is never converted into another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OpenSection(Section):
    """A section that also takes every field of a Hugging Face class; `validation` checks those."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    def settings(self) -> dict[str, Any]:
        """The values that the recipe gives, by key; keys that it leaves out are left out."""
        return {key: value for key, value in self if key in self.model_fields_set}


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

    name: Text | None = None
    from_config: dict[str, Any] | None = None
    tokenizer: Text | None = None
    language: Text | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _one_origin(self) -> ModelSection:
        if (self.name is None) == (self.from_config is None):
            both = "both are set" if self.name is not None else "neither is set"
            rule = f"exactly one of name and from_config must be given and {both}"
            raise ValueError(f"{rule}; set the other one to null")
        if self.from_config is not None and "model_type" not in self.from_config:
            raise ValueError("from_config needs model_type, for example 'bart' or 't5'")
        return self


class LoraSection(OpenSection):
    """Low-rank adapters; other keys are fields of `peft.LoraConfig`."""

    r: Count = 8
    alpha: Count = 16
    dropout: Fraction = 0.0
    target_modules: str | list[str] = "all-linear"


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
        test: Files or split of the test rows; never read by a search.
        dialogue_column: Column of the dialogue; null: the usual names are looked for.
        summary_column: Column of the summary, or a list of columns with one reference each; null:
            the usual names are looked for.
        id_column: Column that tells rows apart; null: `fname` or `id`, or else the row number.
        encoding: Encoding of text files, by its Python name.
        separator: Separator of CSV and TSV files; null: comma and tab.
        empty_rows: What is done about rows without a dialogue or a summary.
        leaks: What is done about training dialogues that are in the validation or test split, too.
        max_dialogue_tokens: Most tokens of a dialogue, with the up to two that a tokenizer adds;
            longer ones are cut at the end.
        max_summary_tokens: Most tokens of a training summary; longer ones are cut. References for
            ROUGE are not.
        special_tokens: Words added to the vocabulary as whole tokens; not where the tokenizer would
            then lose the spaces around them (sentencepiece).
        max_rows: Number of rows, the first ones, that are kept of each split; null: all.
    """

    name: Text | None = None
    config: str | None = None
    revision: str | None = None
    train: Files | None = None
    validation: Files | None = None
    test: Files | None = None
    validation_fraction: float = Field(default=0.1, gt=0.0, lt=1.0)
    dialogue_column: str | None = None
    summary_column: Files | None = None
    id_column: str | None = None
    encoding: str = "utf-8"
    separator: Annotated[str, Field(pattern=r'^[^ "\r\n\x00]$')] | None = None
    empty_rows: Literal["refuse", "drop"] = "refuse"
    leaks: Literal["warn", "refuse"] = "warn"
    max_dialogue_tokens: int = Field(default=512, ge=4)
    max_summary_tokens: int = Field(default=100, ge=4)
    special_tokens: list[Text] = ["#Person1#", "#Person2#"]
    max_rows: int | None = Field(default=None, ge=2)
    seed: Seed = 42

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "a".encode(value)
        except LookupError:
            rule = f"there is no encoding {value!r}"
            raise ValueError(f"{rule}; common are utf-8, cp949 and utf-16") from None
        return value

    @model_validator(mode="after")
    def _acts_on_a_data_set(self) -> DataSection:
        for key in ("config", "revision"):
            if self.name is None and getattr(self, key) is not None:
                raise ValueError(f"{key} acts on a data set, and name is not set; remove {key}")
        return self


class TrainingSection(OpenSection):
    """Fixed training values; other keys are fields of `Seq2SeqTrainingArguments`."""

    num_epochs: Positive = 3
    batch_size: Count = 8
    learning_rate: Positive = 5e-5
    warmup_ratio: Fraction = 0.0
    weight_decay: NotNegative = 0.0
    scheduler_type: str = "linear"


class GenerationSection(OpenSection):
    """Fixed decoding values; other keys are fields of `GenerationConfig`.

    Attributes:
        max_new_tokens: Most tokens of a generated summary; null: a tenth more than 99.5% of the
            training references need, decided once a study.
    """

    max_new_tokens: Count | None = None


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
        push_to_hub: Repository on the Hub that gets the model (`user/model`), with the token in the
            environment variable HF_TOKEN; null: none. A new repository is private.
    """

    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(distinct)] = [42]
    use_validation: bool = False
    save_adapter: bool = False
    push_to_hub: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$")] | None = None

    @model_validator(mode="after")
    def _choosable(self) -> TrainSection:
        if self.use_validation and len(self.seeds) > 1:
            rule = f"use_validation leaves nothing to choose among {len(self.seeds)} seeds by"
            raise ValueError(f"{rule}; give one seed, or set use_validation to false")
        return self


class SamplerSection(OpenSection):
    """A sampler of `optuna.samplers` by its short name; other keys are its arguments."""

    name: str = "tpe"
    seed: Seed | None = 42


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
    num_beams: Count | Literal["same"] = 1


class StagedSection(Section):
    """The second stage of `decode: staged`.

    Attributes:
        n_models: Number of best trained models that take part, and whose weights are kept.
        n_trials: Finished trials wanted in this stage; one costs an evaluation or a part of it.
    """

    n_models: Count = 3
    n_trials: Count = 20


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
        baselines: Known good values by name, each one trial after trial 0, whose values it takes
            where it gives none. The second stage of a staged search tries those of the decoding.
        warm_start: Storage URL of an earlier study of the same recipe but for its space; the
            sampler learns from its finished trials, which do not count and are never the best.
        warm_start_study: Name of that study; null: the only one of its storage.
        keep_trials: Number of best trials whose weights are kept; a staged search keeps at least
            `staged.n_models`.
        parallel: What several processes of one launch do: `trials`, each its own ones on its own
            device; `ddp`, all of them train one trial together.
    """

    n_trials: Count = 50
    timeout: Positive | None = None
    objective: (
        Objective | Annotated[list[Objective], Field(min_length=1), AfterValidator(distinct)]
    ) = "rougeL"
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
    warm_start: Text | None = None
    warm_start_study: Text | None = None
    keep_trials: int = Field(default=1, ge=0)
    parallel: Literal["trials", "ddp"] = "trials"

    @model_validator(mode="after")
    def _study_of_storage(self) -> SearchSection:
        if self.warm_start_study is not None and self.warm_start is None:
            rule = f"warm_start_study is {self.warm_start_study!r}, and warm_start is not set"
            raise ValueError(f"{rule}; set it to the URL of the storage of that study")
        return self

    @property
    def n_kept(self) -> int:
        """Number of best trials whose weights are kept."""
        return max(self.keep_trials, self.staged.n_models if self.decode == "staged" else 0)

    @property
    def objectives(self) -> list[str]:
        """The objectives as a list, also where there is one."""
        return [self.objective] if isinstance(self.objective, str) else list(self.objective)


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

    def fixed_values(self, defaults: bool = False) -> dict[str, Any]:
        """The values outside of the space, by the names of hyperparameters.

        Args:
            defaults: Include what the recipe leaves to the default of its section.
        """
        sections = [part for part in (self.training, self.generation, self.lora) if part]
        parts = [part.model_dump() if defaults else part.settings() for part in sections]
        return {WORDS_OF_LORA_KEYS.get(k, k): v for part in parts for k, v in part.items()}

    def possible_values(self, name: str) -> list[Any]:
        """The values that a name can have in a run: both ends of a range, all choices, or one."""
        if name in self.space:
            return self.space[name].edges()
        value = self.fixed_values(defaults=True).get(name)
        return [default_values().get(name) if value is None else value]


SECTIONS: dict[str, type[OpenSection]] = {
    "training": TrainingSection,
    "generation": GenerationSection,
    "lora": LoraSection,
}
