"""Every hyperparameter: its name, what it acts on, its values, and when it acts.

A name has exactly one owner:

* `lora`: a field of `peft.LoraConfig` (`lora_r`, `lora_alpha`, `lora_dropout`, and the others by
  their own names),
* `model`: dropout and depth, in the model's own configuration,
* `generation`: a field of `transformers.GenerationConfig`,
* `training`: a field of `transformers.Seq2SeqTrainingArguments`, or `batch_size`, `warmup_ratio`.

A new searchable parameter is one row of `_TABLE`; fields of `LoraConfig` and `GenerationConfig`
need one only where they have bounds, a condition or a name of ours.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import typing
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from hpo_summarize.config.space import Condition
from hpo_summarize.config.unusable import OTHER_NAMES, UNUSABLE
from hpo_summarize.errors import did_you_mean

if TYPE_CHECKING:
    from transformers import GenerationConfig

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]

BATCH_SIZE = "batch_size"
WARMUP_RATIO = "warmup_ratio"
DROPOUTS = ("hidden_dropout", "attention_dropout")
DEPTHS = ("encoder_layers", "decoder_layers")
# Values of init_lora_weights that leave the weights below the adapters alone; the others, PiSSA or
# OLoRA, take out of those what they put into the adapters.
LEAVES_BASE = (True, False, "gaussian", "orthogonal", "mica")
# Schedules that follow the metric; without a `mode` they take a rising ROUGE for a failing one.
BY_METRIC = ("reduce_lr_on_plateau", "greedy")

_SAMPLING = Condition("do_sample", lambda value: value is True, "do_sample is True")
_BEAMS = Condition("num_beams", lambda value: value not in (None, 1), "num_beams is above 1")
_WARMUP = Condition(
    "scheduler_type",
    lambda value: value not in ("constant", *BY_METRIC),
    "scheduler_type has a warm-up",
)
_OPTIONS = Condition(
    "scheduler_type",
    lambda value: value not in ("constant", "constant_with_warmup"),
    "scheduler_type has options",
)
_LOFTQ = Condition(
    "init_lora_weights", lambda value: value == "loftq", "init_lora_weights is loftq"
)
_CHECKPOINTING = {
    f"{name}_kwargs": Condition(name, bool, f"{name} is True")
    for name in ("activation_checkpointing", "gradient_checkpointing")
}

Owner = Literal["model", "lora", "training", "generation"]


@dataclass(frozen=True)
class Hyperparameter:
    """One name and what is known of it before a model is loaded.

    Attributes:
        name: In the search space, in `best_params.json` and on the plots.
        owner: What it acts on.
        type: Type of its values, with bounds; None in `_TABLE`: Hugging Face's annotation.
        field: Field of the owner's class; None in `_TABLE`: it has the same name.
        key: Key in the section of the recipe; None in `_TABLE`: the name.
        needs: Condition without which it has no effect.
        searched: Whether a trial can have a value of its own.
    """

    name: str
    owner: Owner
    type: Any = None
    field: str | None = None
    key: str | None = None
    needs: Condition | None = None
    searched: bool = True


_P = Hyperparameter
_TABLE = (
    *(_P(name, "model", Fraction) for name in DROPOUTS),
    *(_P(name, "model", Count) for name in DEPTHS),
    _P("lora_r", "lora", Count, field="r", key="r"),
    _P("lora_alpha", "lora", Count, key="alpha"),
    _P("lora_dropout", "lora", Fraction, key="dropout"),
    _P("loftq_config", "lora", needs=_LOFTQ),
    # peft writes a placeholder into the type (`pissa_niter_[number of iters]`).
    _P("init_lora_weights", "lora", bool | str),
    _P("num_epochs", "training", Positive, field="num_train_epochs"),
    _P(BATCH_SIZE, "training", Count),
    _P("per_device_train_batch_size", "training", Count),
    _P("gradient_accumulation_steps", "training", Count),
    _P("learning_rate", "training", Positive),
    _P("scheduler_type", "training", field="lr_scheduler_type"),
    _P(WARMUP_RATIO, "training", Fraction, needs=_WARMUP),
    _P("warmup_steps", "training", NotNegative, needs=_WARMUP),
    _P("weight_decay", "training", NotNegative),
    _P("optim", "training"),
    _P("adam_beta1", "training", Fraction),
    _P("adam_beta2", "training", Fraction),
    _P("adam_epsilon", "training", NotNegative),
    _P("max_grad_norm", "training", NotNegative),
    _P("label_smoothing_factor", "training", Fraction),
    _P("neftune_noise_alpha", "training"),
    _P("train_sampling_strategy", "training"),
    _P("tf32", "training"),
    _P("seed", "training", Seed, searched=False),
    _P("data_seed", "training", Seed | None, searched=False),
    _P("per_device_eval_batch_size", "training", Count, searched=False),
    _P("save_total_limit", "training", Count | None, searched=False),
    _P("lr_scheduler_kwargs", "training", needs=_OPTIONS, searched=False),
    *(_P(n, "training", needs=needs, searched=False) for n, needs in _CHECKPOINTING.items()),
    # A trial is evaluated and saved once an epoch, or not saved at all.
    _P("eval_strategy", "training", Literal["epoch"], searched=False),
    _P("save_strategy", "training", Literal["epoch", "no"], searched=False),
    _P("do_sample", "generation", bool),
    _P("temperature", "generation", Positive, needs=_SAMPLING),
    _P("top_p", "generation", Share, needs=_SAMPLING),
    _P("top_k", "generation", CountOrZero, needs=_SAMPLING),
    _P("min_p", "generation", Annotated[float, Field(ge=0, le=1)], needs=_SAMPLING),
    _P("typical_p", "generation", Share, needs=_SAMPLING),
    _P("top_h", "generation", float, needs=_SAMPLING),
    _P("epsilon_cutoff", "generation", needs=_SAMPLING),
    _P("eta_cutoff", "generation", needs=_SAMPLING),
    _P("num_beams", "generation", Count),
    _P("length_penalty", "generation", needs=_BEAMS),
    _P("early_stopping", "generation", bool | Literal["never"], needs=_BEAMS),
    _P("repetition_penalty", "generation", Positive),
    _P("no_repeat_ngram_size", "generation", CountOrZero),
    _P("max_new_tokens", "generation", Count | None),
    _P("min_new_tokens", "generation", int),
    # Decided by the tokenizer, or of no influence on the summaries.
    *(
        _P(name, "generation", searched=False)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
        + ("cache_implementation", "compile_config", "disable_compile")
    ),
)
MODEL_NAMES = tuple(row.name for row in _TABLE if row.owner == "model")
TRAINING_WORDS = {
    row.name: row.field for row in _TABLE if row.owner == "training" and row.field is not None
}
LORA_KEYS = {row.name: row.key for row in _TABLE if row.key is not None}
LORA_WORDS = {row.name: row.field or row.name for row in _TABLE if row.key is not None}
WORDS_OF_LORA_KEYS = {key: name for name, key in LORA_KEYS.items()}
SAMPLING_ONLY = frozenset(row.name for row in _TABLE if row.needs is _SAMPLING)
BEAMS_ONLY = frozenset(row.name for row in _TABLE if row.needs is _BEAMS)

# Fields that cannot be searched in a recipe and act in the search space of a script, where nothing
# else decides the length of a training, and Hugging Face's own names are usual.
_SCRIPT_ONLY = frozenset(
    ("seed", "data_seed", "max_steps", "optim_args", "optim_target_modules", "lr_scheduler_kwargs")
    + ("generation_num_beams", *TRAINING_WORDS.values())
)


@functools.cache
def parameters() -> dict[str, Hyperparameter]:
    """Every name that a recipe can fix or search, with all that Hugging Face's classes know."""
    rows = {row.name: row for row in _TABLE}
    renamed = {row.field for row in _TABLE}
    for owner, types in _fields().items():
        for name in types:
            if name not in renamed:
                rows.setdefault(name, Hyperparameter(name, owner, searched=owner != "training"))
    return {name: _completed(row) for name, row in rows.items()}


def _completed(row: Hyperparameter) -> Hyperparameter:
    field = row.field or row.name
    return replace(
        row,
        type=_fields()[row.owner][field] if row.type is None else row.type,
        field=field,
        key=row.key or row.name,
        searched=row.searched and row.name not in UNUSABLE and row.name not in OTHER_NAMES,
    )


@functools.cache
def _fields() -> dict[Owner, dict[str, Any]]:
    """The fields of Hugging Face's classes with their types, by owner."""
    from peft import LoraConfig
    from transformers import GenerationConfig, Seq2SeqTrainingArguments

    found: dict[Owner, dict[str, Any]] = {}
    classes: list[tuple[Owner, Any]] = [
        ("lora", LoraConfig),
        ("training", Seq2SeqTrainingArguments),
    ]
    for owner, cls in classes:
        hints = typing.get_type_hints(cls)
        found[owner] = {f.name: _plain(hints[f.name]) for f in dataclasses.fields(cls) if f.init}
    config = GenerationConfig()
    defaults = {**vars(config), **config._get_default_generation_params()}
    found["generation"] = {
        name: Any if default is None else type(default)
        for name, default in defaults.items()
        if not name.startswith("_") and name != "transformers_version"
    }
    return found


def _plain(kind: Any) -> Any:
    """An enumeration as the texts that a recipe writes; other types as they are."""
    options = (kind, *typing.get_args(kind))
    for option in options:
        if isinstance(option, type) and issubclass(option, enum.Enum):
            texts: Any = Literal[tuple(str(member.value) for member in option)]
            return texts | None if type(None) in options else texts
    return kind


@functools.cache
def default_values() -> dict[str, Any]:
    """Hugging Face's default for every name that has one."""
    from peft import LoraConfig
    from transformers import GenerationConfig, Seq2SeqTrainingArguments

    found = {**GenerationConfig()._get_default_generation_params(), BATCH_SIZE: 8}
    found[WARMUP_RATIO] = 0.0
    words = {field: word for word, field in (TRAINING_WORDS | LORA_WORDS).items()}
    for cls in (LoraConfig, Seq2SeqTrainingArguments):
        for f in dataclasses.fields(cls):
            if f.default is not dataclasses.MISSING:
                found[words.get(f.name, f.name)] = f.default
    return found


def owner_of(name: str) -> Owner | None:
    """The one owner of a name; None if there is none."""
    return parameters()[name].owner if name in parameters() else None


def condition_of(name: str) -> Condition | None:
    """The condition without which `name` has no effect, whatever a recipe says; None if none."""
    return parameters()[name].needs if name in parameters() else None


def why_not_searchable(name: str) -> str | None:
    """Says why a recipe cannot search a name; None if it can."""
    for known in parameters().values():
        if name == known.field != known.name:
            return f"this field is called '{known.name}' here; use that name"
    if name in UNUSABLE:
        return UNUSABLE[name]
    if name in OTHER_NAMES:
        return f"this is set in another place: {OTHER_NAMES[name]}"
    if name not in parameters():
        searched = [known for known, row in parameters().items() if row.searched]
        nearest = did_you_mean(name, searched, "drop it")
        return f"nothing in a model, its training or its decoding has this name{nearest}"
    if name in ("seed", "data_seed"):
        return "a search over seeds finds luck, not a better setting; fix it under training"
    if not parameters()[name].searched:
        owner = owner_of(name)
        return f"it is fixed for the whole run and cannot act in a trial; fix it under {owner}"
    return None


def why_cannot_act(name: str) -> str | None:
    """Like `why_not_searchable`, for the search space of a user's script."""
    if name in ("max_length", "generation_max_length"):
        return "a checkpoint's own max_new_tokens would overrule it; search max_new_tokens"
    return None if name in _SCRIPT_ONLY else why_not_searchable(name)


def split_by_owner(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sorts values by owner: `{"model": {...}, "lora": {...}, "training": ..., "generation": ...}`.

    Fields of `Seq2SeqTrainingArguments` may also stand under their own names.

    Raises:
        ValueError: A name has no owner.
    """
    parts: dict[str, dict[str, Any]] = {owner: {} for owner in typing.get_args(Owner)}
    for name, value in values.items():
        owner = owner_of(name) or ("training" if name in _fields()["training"] else None)
        if owner is None:
            raise ValueError(f"'{name}' (value {value!r}): {why_not_searchable(name)}")
        parts[owner][name] = value
    return parts


def foreign_settings(config: GenerationConfig, given: Container[str]) -> dict[str, Any]:
    """Values of a checkpoint's own decoding that cannot be used on other data, or not here at all.

    Its least length, such as the 56 tokens of `facebook/bart-large-cnn`, goes with its most tokens,
    whose place another limit has taken; and it has what no recipe may set.

    Args:
        config: The checkpoint's own.
        given: Names that the recipe fixes or searches.
    """
    names = ("min_length", "min_new_tokens", "num_return_sequences", "return_dict_in_generate")
    found = {name: vars(config).get(name) for name in (*names, *UNUSABLE)}
    return {
        name: value
        for name, value in found.items()
        if name not in given and value and value != default_values().get(name)
    }
