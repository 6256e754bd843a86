"""Rules between the keys of a recipe, checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy

from hpo_summarize.config.fields import (
    model_type_problem,
    schedule_problems,
    type_problem,
    unusable_decoding,
    unusable_field,
)
from hpo_summarize.config.idle import idle_problems
from hpo_summarize.config.optuna_rules import optuna_problems
from hpo_summarize.config.parameters import (
    FIXED_LORA,
    HUB_DECODING,
    IDLE_LORA,
    LEAVES_BASE,
    LIMITS,
    LORA_KEYS,
    ONE_NAME_ONLY,
    TRAINING_WORDS,
    WORDS_OF_LORA_KEYS,
    known_names,
    limit_problem,
    owner_of,
    why_not_searchable,
)
from hpo_summarize.config.settings import SECTIONS, possible_values
from hpo_summarize.config.space_rules import space_problems
from hpo_summarize.errors import Problem, did_you_mean

# Keys that the recipe sets somewhere else, with the place.
_ELSEWHERE = {
    "hub_token": "the environment variable HF_TOKEN, so that it is written nowhere",
    "output_dir": "output_dir, at the top of the recipe",
    "generation_config": "the section generation",
    "predict_with_generate": "nowhere; summaries are always generated",
    "num_return_sequences": "nowhere; each dialogue gets one summary",
    "return_dict_in_generate": "nowhere; only the summaries are used",
    # Names of transformers 4.
    "group_by_length": "training.train_sampling_strategy=group_by_length",
    "no_cuda": "training.use_cpu",
    **{field: f"generation.{name}" for field, name in ONE_NAME_ONLY.items()},
}
_MADE_HERE = "the adapter is made for training, on the model of the recipe; drop it"
_FIXED_ADAPTER = {**dict.fromkeys(FIXED_LORA, _MADE_HERE), **IDLE_LORA}
# The first of each pair has a default, which gives way to the second.
CONFLICTS = (
    ("batch_size", "gradient_accumulation_steps", "batch_size is the whole optimizer step"),
    ("warmup_ratio", "warmup_steps", "both say how long the warm-up is"),
)


def find_problems(content: Mapping[str, Any], needs_data: bool = True) -> list[Problem]:
    """Every rule between keys that `content` breaks; malformed sections are passed over.

    Args:
        content: The sections of a recipe.
        needs_data: Whether the recipe has to say where the data are.
    """
    parts = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    return [
        *_model_problems(parts),
        *_revision_problems(parts),
        *(_data_problems(content) if needs_data else ()),
        *_open_section_problems(parts),
        *schedule_problems(parts),
        *idle_problems(parts),
        *optuna_problems(parts),
        *storage_problems(parts),
        *_conflicts(parts),
        *_batch_problems(parts),
        *_train_problems(parts),
        *space_problems(parts),
        *stage_problems(parts),
    ]


def _model_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    model = parts.get("model", {})
    config = model.get("from_config")
    if isinstance(config, Mapping) and "model_type" in config:
        if message := model_type_problem(config["model_type"]):
            yield Problem("model.from_config.model_type", message)


def _revision_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    for section in ("model", "data"):
        name, revision = (parts.get(section, {}).get(key) for key in ("name", "revision"))
        if revision is None or (name is None and section == "data"):
            continue
        place = "no name" if name is None else f"the folder {name!r}"
        if not isinstance(name, str) or Path(name).expanduser().is_dir():
            yield Problem(
                f"{section}.revision",
                f"acts on a repository of the Hub, and this section has {place} "
                f"(value {revision!r}); drop it",
            )


def _data_problems(content: Mapping[str, Any]) -> Iterator[Problem]:
    data = content.get("data", {})
    if isinstance(data, Mapping) and data.get("name") is None and data.get("train") is None:
        yield Problem(
            "data",
            "neither name nor train is set; set train to a file, "
            "or name to a folder or a data set on the Hub",
        )


def _open_section_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    for section, model in SECTIONS.items():
        given = {k: v for k, v in parts.get(section, {}).items() if isinstance(k, str)}
        for key, value in given.items():
            name = WORDS_OF_LORA_KEYS.get(key, key) if section == "lora" else key
            if key not in model.model_fields:
                message = _wrong_key(section, key, value) or limit_problem(name, value)
            elif key == "scheduler_type" and isinstance(value, str):
                message = type_problem(value, known_names()[key][1])
            else:
                # The limits of most keys stand in the section itself.
                message = None if name in LIMITS else limit_problem(name, value)
            if message:
                yield Problem(f"{section}.{key}", message)


def _wrong_key(section: str, key: str, value: Any) -> str | None:
    """Says what is wrong with a key that only Hugging Face's class can know, or None."""
    known = {name: kind for name, (owner, kind) in known_names().items() if owner == section}
    words = {field: word for word, field in TRAINING_WORDS.items()}
    if section == "lora":
        words = LORA_KEYS
        known = {words.get(name, name): kind for name, kind in known.items()}
    if key in words:
        return f"this field is called '{words[key]}' here; use that name"
    if key in _ELSEWHERE:
        return f"this is set in another place: {_ELSEWHERE[key]}"
    if key in HUB_DECODING:
        return why_not_searchable(key)
    if section == "generation" and (reason := unusable_decoding(key, value)):
        return reason
    if key in known:
        return type_problem(value, known[key]) or _unusable(section, key, value)
    if (owner := owner_of(key)) in SECTIONS:
        return f"this key belongs to the section {owner} (value {value!r}); move it there"
    if owner == "model":
        return f"it cannot be fixed here (value {value!r}), only searched; move it to the space"
    nearest = did_you_mean(key, known, "drop it", usable=lambda name: _can_be_set(section, name))
    return f"unknown key (value {value!r}){nearest}"


def _can_be_set(section: str, key: str) -> bool:
    """Whether some value other than its default is accepted for a field of Hugging Face."""
    if key in _ELSEWHERE or key in HUB_DECODING:
        return False
    some = "epoch"  # No default of a refused field, and a strategy that is allowed.
    refused = unusable_decoding(key, some) if section == "generation" else None
    return not (refused or _unusable(section, key, some))


def _unusable(section: str, key: str, value: Any) -> str | None:
    if section == "training":
        return unusable_field(key, value)
    if section != "lora" or value is None or value is False or key not in _FIXED_ADAPTER:
        return None
    return f"cannot be used here (value {value!r}): {_FIXED_ADAPTER[key]}"


def _conflicts(parts: Mapping[str, Any]) -> Iterator[Problem]:
    training, space = parts.get("training", {}), parts.get("space", {})
    for first, second, reason in CONFLICTS:
        where = [
            f"{part}.{second}" for part in ("training", "space") if second in parts.get(part, {})
        ]
        if where and (first in training or first in space):
            yield Problem(where[0], f"stands beside {first}, and {reason}; keep one of the two")


def _batch_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """`batch_size` has a default, and what splits a batch must not seem to set it."""
    training, space = parts.get("training", {}), parts.get("space", {})
    given = "batch_size" in training or "batch_size" in space
    for key in ("gradient_accumulation_steps", "per_device_train_batch_size"):
        if key in training and not given:
            yield Problem(
                f"training.{key}",
                f"only splits batch_size, which is not given (value {training[key]!r}); set "
                "training.batch_size, the examples of one optimizer step over all devices",
            )
    if "per_device_train_batch_size" in space and given:
        yield Problem(
            "space.per_device_train_batch_size",
            "only splits batch_size, so it changes no result; take it out of the space",
        )


def _train_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    if parts.get("train", {}).get("save_adapter") is not True:
        return
    if "lora" not in parts:
        yield Problem(
            "train.save_adapter",
            "this recipe trains without LoRA, so there is no adapter (value True); "
            "set it to false, or add a section lora",
        )
    elif parts.get("model", {}).get("from_config") is not None:
        yield Problem(
            "train.save_adapter",
            "the adapter would fit on nothing but the random weights of model.from_config, which "
            "are not kept (value True); set it to false",
        )
    else:
        ways = possible_values("init_lora_weights", parts)
        if changing := [way for way in ways if way not in LEAVES_BASE]:
            yield Problem(
                "train.save_adapter",
                f"an adapter with init_lora_weights {changing[0]!r} changes the weights below it "
                "and fits on no others (value True); set it to false",
            )


def stage_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """Every reason why `search.decode: staged` cannot part the search space in two."""
    if parts.get("search", {}).get("decode") != "staged":
        return
    space = {k: v for k, v in parts.get("space", {}).items() if owner_of(k) is not None}
    decoding = {name for name in space if owner_of(name) == "generation"}
    if not decoding:
        yield Problem(
            "search.decode",
            "'staged' searches decoding in a stage of its own, and the space has no parameter of "
            "it; add num_beams, for example, or set decode to joint",
        )
    elif decoding == set(space):
        yield Problem(
            "search.decode",
            "'staged' searches the training first, and the space has no parameter of it; add "
            "learning_rate, for example, or set decode to joint",
        )
    for name, parameter in space.items():
        conditions = parameter.get("when") if isinstance(parameter, Mapping) else None
        for other in conditions if isinstance(conditions, Mapping) else ():
            if other in space and (other in decoding) != (name in decoding):
                yield Problem(
                    f"space.{name}.when.{other}",
                    f"with decode: staged, {name} and {other} are searched in different stages; "
                    "drop the condition, or set decode to joint",
                )
    if parts.get("training", {}).get("save_strategy", "epoch") == "no":
        yield Problem(
            "training.save_strategy",
            "with decode: staged, the second stage needs the weights of the first, got 'no'; set "
            "it to epoch",
        )


_FORMS = (
    "write sqlite:///file.db, journal:///folder/file.log or "
    "postgresql+psycopg://user@host/database"
)


def storage_problems(parts: Mapping[str, Any]) -> Iterator[Problem]:
    """A URL that names no kind of storage, or one that is gone with the process."""
    url = parts.get("search", {}).get("storage")
    if isinstance(url, str) and not url.startswith("journal://") and (reason := _wrong_url(url)):
        yield Problem("search.storage", f"{reason}; {_FORMS}")


def _wrong_url(url: str) -> str | None:
    """Says what is wrong without the URL itself: its password may stand anywhere in it."""
    try:
        parsed = sqlalchemy.make_url(url)
        backend = parsed.get_backend_name()
        parsed.get_dialect()
    except sqlalchemy.exc.NoSuchModuleError:
        return f"there is no kind of database called '{parsed.drivername}'"
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return "this is no URL of a storage"
    except ImportError:
        return None  # The driver is not installed; opening the storage says how to get it.
    in_memory = parsed.database in (None, "", ":memory:") or parsed.query.get("mode") == "memory"
    if backend == "sqlite" and in_memory:
        return "a database in memory ends with the process, and nothing could go on from there"
    return None
