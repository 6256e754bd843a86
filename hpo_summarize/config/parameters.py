"""Every hyperparameter name, what it acts on, and the Hugging Face field behind it.

A name has exactly one owner:

* `lora`: a field of `peft.LoraConfig` (`lora_r`, `lora_alpha`, `lora_dropout`, and the others by
  their own names),
* `model`: dropout and depth, in the model's own configuration,
* `generation`: a field of `transformers.GenerationConfig`,
* `training`: a field of `transformers.Seq2SeqTrainingArguments`, or one of the words below.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from typing import Any

import pydantic

from hpo_summarize.errors import did_you_mean

# Our word for a field, by owner. A field that has a word is known by that word alone.
TRAINING_WORDS = {
    "num_epochs": "num_train_epochs",
    "scheduler_type": "lr_scheduler_type",
}
# Values of init_lora_weights that leave the weights below the adapters alone; the others, PiSSA or
# OLoRA, take out of those what they put into the adapters.
LEAVES_BASE = (True, False, "gaussian", "orthogonal", "mica")
LORA_WORDS = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
# The keys of the section `lora` in a recipe for these words.
LORA_KEYS = {"lora_r": "r", "lora_alpha": "alpha", "lora_dropout": "dropout"}
WORDS_OF_LORA_KEYS = {key: word for word, key in LORA_KEYS.items()}
# Words that stand for more than one field, or for none under that name.
BATCH_SIZE = "batch_size"
WARMUP_RATIO = "warmup_ratio"
DEPTHS = ("encoder_layers", "decoder_layers")
DROPOUTS = ("hidden_dropout", "attention_dropout")
MODEL_NAMES = (*DROPOUTS, *DEPTHS)

TYPES_OF_WORDS: dict[str, Any] = {
    BATCH_SIZE: int,
    WARMUP_RATIO: float,
    **dict.fromkeys(DROPOUTS, float),
    **dict.fromkeys(DEPTHS, int),
}

# Hugging Face's default_values for the words that are no fields.
_DEFAULTS_OF_WORDS: dict[str, Any] = {BATCH_SIZE: 8, WARMUP_RATIO: 0.0}

# Values outside of these limits cannot work: name to (low, high), and the bounds that are excluded.
LIMITS: dict[str, tuple[float, float, str]] = {
    "learning_rate": (0.0, float("inf"), "low"),
    BATCH_SIZE: (1, float("inf"), ""),
    "num_epochs": (0.0, float("inf"), "low"),
    WARMUP_RATIO: (0.0, 1.0, "high"),
    "weight_decay": (0.0, float("inf"), ""),
    "label_smoothing_factor": (0.0, 1.0, "high"),
    "max_grad_norm": (0.0, float("inf"), ""),
    "gradient_accumulation_steps": (1, float("inf"), ""),
    "per_device_train_batch_size": (1, float("inf"), ""),
    "per_device_eval_batch_size": (1, float("inf"), ""),
    "save_total_limit": (1, float("inf"), ""),
    "warmup_steps": (0.0, float("inf"), ""),
    "adam_beta1": (0.0, 1.0, "high"),
    "adam_beta2": (0.0, 1.0, "high"),
    "adam_epsilon": (0.0, float("inf"), ""),
    "seed": (0, 2**32 - 1, ""),
    "data_seed": (0, 2**32 - 1, ""),
    "lora_r": (1, float("inf"), ""),
    "lora_alpha": (1, float("inf"), ""),
    "lora_dropout": (0.0, 1.0, "high"),
    "hidden_dropout": (0.0, 1.0, "high"),
    "attention_dropout": (0.0, 1.0, "high"),
    "encoder_layers": (1, float("inf"), ""),
    "decoder_layers": (1, float("inf"), ""),
    "temperature": (0.0, float("inf"), "low"),
    "top_p": (0.0, 1.0, "low"),
    "top_k": (0, float("inf"), ""),
    "min_p": (0.0, 1.0, ""),
    "typical_p": (0.0, 1.0, "low"),
    "num_beams": (1, float("inf"), ""),
    "repetition_penalty": (0.0, float("inf"), "low"),
    "no_repeat_ngram_size": (0, float("inf"), ""),
    "max_new_tokens": (1, float("inf"), ""),
}

# Generation fields that change nothing unless tokens are sampled, or unless beams are searched.
SAMPLING_ONLY = frozenset(
    ["temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"]
)
BEAMS_ONLY = frozenset(["length_penalty", "early_stopping"])
# The length of a warm-up, and the schedules that have none.
WARMUPS = frozenset([WARMUP_RATIO, "warmup_steps"])
NO_WARMUP = ("constant", "reduce_lr_on_plateau", "greedy")
# Fields that a recipe knows by one name only, or that another one overrules here.
ONE_NAME_ONLY = {
    "max_length": "max_new_tokens",
    "generation_max_length": "max_new_tokens",
    "generation_num_beams": "num_beams",
}

# Training arguments that are read once, when the trainer or the process group is made, or that
# change what is written and not what is learned: a value of them in a trial would have no effect.
_FIXED_PREFIXES = (
    *("logging_", "save_", "eval_", "hub_", "log_", "trackio_", "fsdp", "ddp_", "do_"),
    *("torch_compile", "activation_checkpointing", "gradient_checkpointing"),
)
_FIXED_TRAINING = frozenset(
    """accelerator_config auto_find_batch_size batch_eval_metrics bf16 bf16_full_eval
    dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers
    dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor debug deepspeed
    disable_tqdm enable_jit_checkpoint fp16 fp16_full_eval full_determinism generation_config
    greater_is_better ignore_data_skip include_for_metrics include_num_input_tokens_seen
    label_names length_column_name liger_kernel_config load_best_model_at_end local_rank
    metric_for_best_model output_dir parallelism_config per_device_eval_batch_size
    predict_with_generate prediction_loss_only project push_to_hub remove_unused_columns report_to
    restore_callback_states_from_checkpoint resume_from_checkpoint run_name skip_memory_metrics
    torch_empty_cache_steps use_cache use_cpu use_liger_kernel""".split()
)
_SEEDS = frozenset(["seed", "data_seed"])
# Generation fields that change the form of the output or the speed, or that the tokenizer decides.
_FIXED_GENERATION = frozenset(
    """bos_token_id cache_config cache_implementation compile_config continuous_batching_config
    decoder_start_token_id disable_compile eos_token_id is_assistant low_memory max_cache_len
    max_time num_return_sequences pad_token_id prefill_chunk_size return_dict_in_generate
    """.split()
)
# Forms of decoding that transformers 5 runs only with code from the Hub.
HUB_DECODING = frozenset(
    """constraints diversity_penalty dola_layers force_words_ids num_beam_groups
    penalty_alpha""".split()
)
# Fields of `LoraConfig` that describe the adapter and do not change what it learns.
FIXED_LORA = frozenset(
    """auto_mapping base_model_name_or_path inference_mode peft_type peft_version revision
    runtime_config task_type""".split()
)
# Fields of `LoraConfig` that nothing reads here, with the reason and what to do.
_MEGATRON = "only layers of Megatron read it; drop it"
_QALORA = "only weights that GPTQ has quantised have a use for it; drop it"
IDLE_LORA = {
    "megatron_config": _MEGATRON,
    "megatron_core": _MEGATRON,
    "use_qalora": _QALORA,
    "qalora_group_size": _QALORA,
    "fan_in_fan_out": "peft sets it itself, by the kind of each layer; drop it",
    "ensure_weight_tying": "tied layers are untied before they get an adapter; drop it",
}


@functools.cache
def training_fields() -> dict[str, Any]:
    """Every field of `Seq2SeqTrainingArguments` with its type."""
    from transformers import Seq2SeqTrainingArguments

    hints = typing.get_type_hints(Seq2SeqTrainingArguments)
    return {f.name: hints[f.name] for f in dataclasses.fields(Seq2SeqTrainingArguments) if f.init}


@functools.cache
def generation_fields() -> dict[str, Any]:
    """Every field of `GenerationConfig` with the type of its default, or `Any` without one."""
    from transformers import GenerationConfig

    config = GenerationConfig()
    default_values = config._get_default_generation_params()
    numbers: dict[str, Any] = {
        name: type(value) for name, value in default_values.items() if value is not None
    }
    numbers.update(max_new_tokens=int, min_new_tokens=int, min_p=float, top_h=float)
    numbers["early_stopping"] = bool | typing.Literal["never"]
    names = [name for name in {**config.to_dict(), **vars(config)} if not name.startswith("_")]
    return {name: numbers.get(name, Any) for name in names if name != "transformers_version"}


@functools.cache
def lora_fields() -> dict[str, Any]:
    """Every field of `peft.LoraConfig` with its type."""
    from peft import LoraConfig

    hints = typing.get_type_hints(LoraConfig)
    # peft writes a placeholder into the type, where any number may stand.
    begin = "pissa_niter_"
    with_number = pydantic.Field(
        pattern=f"^{begin}[0-9]+$", description=f"{begin}N (N a whole number)"
    )
    ways = [
        option
        for part in typing.get_args(hints["init_lora_weights"])
        for option in typing.get_args(part)
        if not option.startswith(begin)
    ]
    hints["init_lora_weights"] = (
        bool | typing.Annotated[str, with_number] | typing.Literal[tuple(ways)]
    )
    return {f.name: hints[f.name] for f in dataclasses.fields(LoraConfig) if f.init}


@functools.cache
def default_values() -> dict[str, Any]:
    """Hugging Face's default for every name that has one."""
    from peft import LoraConfig
    from transformers import GenerationConfig, Seq2SeqTrainingArguments

    found = {**GenerationConfig()._get_default_generation_params(), **_DEFAULTS_OF_WORDS}
    raw: dict[str, Any] = {}
    for configuration in (LoraConfig, Seq2SeqTrainingArguments):
        fields = dataclasses.fields(configuration)
        raw |= {f.name: f.default for f in fields if f.default is not dataclasses.MISSING}
    words = {field: word for word, field in (TRAINING_WORDS | LORA_WORDS).items()}
    return {**found, **{words.get(name, name): value for name, value in raw.items()}}


def _types_by_owner() -> dict[str, dict[str, Any]]:
    training = {word: training_fields()[field] for word, field in TRAINING_WORDS.items()}
    training.update({word: TYPES_OF_WORDS[word] for word in (BATCH_SIZE, WARMUP_RATIO)})
    hidden = set(TRAINING_WORDS.values())
    training.update({k: v for k, v in training_fields().items() if k not in hidden})
    lora = {word: lora_fields()[field] for word, field in LORA_WORDS.items()}
    lora.update({k: v for k, v in lora_fields().items() if k not in LORA_WORDS.values()})
    generation = {k: v for k, v in generation_fields().items() if k not in training}
    model = {name: TYPES_OF_WORDS[name] for name in MODEL_NAMES}
    return {"model": model, "lora": lora, "training": training, "generation": generation}


@functools.cache
def known_names() -> dict[str, tuple[str, Any]]:
    """Every name that may stand in a search space, as `{name: (owner, type)}`."""
    return {
        name: (owner, kind)
        for owner, types in reversed(_types_by_owner().items())
        for name, kind in types.items()
    }


def owner_of(name: str) -> str | None:
    """The one owner of a name: `model`, `lora`, `training`, `generation`; None if there is none."""
    return known_names()[name][0] if name in known_names() else None


def why_not_searchable(
    name: str, otherwise_refused: Callable[[str], Any] = lambda name: None
) -> str | None:
    """Says why a name cannot be searched, or None if it can.

    Unknown names, names of a run's own bookkeeping, and fields that have a word of ours.

    Args:
        name: The name.
        otherwise_refused: Whether the caller refuses a name for another reason, so that it is not
            to be proposed.
    """
    words = {field: word for word, field in (TRAINING_WORDS | LORA_WORDS).items() if word != field}
    if name in words:
        return f"this field is called '{words[name]}' here; use that name"
    owner = owner_of(name)
    if owner is None:

        def usable(known: str) -> bool:
            refused = known in ONE_NAME_ONLY or why_not_searchable(known)
            return not (refused or otherwise_refused(known))

        nearest = did_you_mean(name, known_names(), "drop it", usable)
        return f"nothing in a model, its training or its decoding has this name{nearest}"
    if name in _SEEDS:
        return "a search over seeds finds luck, not a better setting; fix it under training"
    if owner == "training" and (name in _FIXED_TRAINING or name.startswith(_FIXED_PREFIXES)):
        return "it is fixed for the whole run and cannot act in a trial; fix it under training"
    if owner == "generation" and (name in _FIXED_GENERATION or name.startswith("output_")):
        return "it changes the form or the speed of the output, not the summary; drop it"
    if name in HUB_DECODING:
        return "transformers runs this form of decoding only with code from the Hub; drop it"
    if owner == "lora" and name in FIXED_LORA:
        return "it describes the adapter and does not change what it learns; drop it"
    return IDLE_LORA.get(name) if owner == "lora" else None


def why_cannot_act(name: str) -> str | None:
    """Like `why_not_searchable`, for the search space of somebody's script.

    Hugging Face's own field names and the seeds are allowed there.
    """
    if ONE_NAME_ONLY.get(name) == "max_new_tokens":
        return "a checkpoint's own max_new_tokens would overrule it; search max_new_tokens"
    if name in _SEEDS or name in TRAINING_WORDS.values():
        return None
    return why_not_searchable(name)


def implied_condition(name: str) -> str | None:
    """The name that decides whether `name` has an effect; None if none does."""
    if name in SAMPLING_ONLY:
        return "do_sample"
    if name in WARMUPS:
        return "scheduler_type"
    return "num_beams" if name in BEAMS_ONLY else None


def lets_act(name: str, value: Any) -> bool:
    """Whether `name` has an effect while its `implied_condition` has this value."""
    if name in SAMPLING_ONLY:
        return value is True
    if name in WARMUPS:
        return value not in NO_WARMUP
    return isinstance(value, int | float) and value > 1


def split_by_owner(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Sorts values by owner: `{"model": {...}, "lora": {...}, "training": ..., "generation": ...}`.

    Fields of `Seq2SeqTrainingArguments` may also stand under their own names.

    Raises:
        ValueError: A name has no owner.
    """
    parts: dict[str, dict[str, Any]] = {owner: {} for owner in _types_by_owner()}
    for name, value in values.items():
        owner = owner_of(name) or ("training" if name in training_fields() else None)
        if owner is None:
            raise ValueError(f"'{name}' (value {value!r}): {why_not_searchable(name)}")
        parts[owner][name] = value
    return parts


def limit_problem(name: str, value: Any) -> str | None:
    """Says which limit of `LIMITS` a value breaks, or None."""
    if name not in LIMITS or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    low, high, excluded = LIMITS[name]
    below = value <= low if "low" in excluded else value < low
    above = value >= high if "high" in excluded else value > high
    if below:
        return f"must be {'above' if 'low' in excluded else 'at least'} {low:g}, got {value}"
    if above:
        return f"must be {'below' if 'high' in excluded else 'at most'} {high:.10g}, got {value}"
    return None
