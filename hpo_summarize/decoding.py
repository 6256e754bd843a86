"""Generation configs that can be used and saved."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from hpo_summarize import names

_NEW_TOKENS_BY_DEFAULT = 20  # Of `generate`, where neither limit is set.


def clear_idle_flags(config: GenerationConfig, values: Mapping[str, Any] | None = None) -> None:
    """Takes out flags that cannot act: with one of them set, no checkpoint can be saved.

    `facebook/bart-base` has `early_stopping` for its 4 beams, and a trial may run with 1.

    Args:
        config: Changed in place.
        values: Values that will take the place of those in `config`.
    """
    values = values or {}
    if not values.get("do_sample", config.do_sample):
        for name in names.SAMPLING_ONLY:
            setattr(config, name, None)
    if (values.get("num_beams", config.num_beams) or 1) == 1:
        for name in names.BEAMS_ONLY:
            setattr(config, name, None)


def with_settings(
    config: GenerationConfig, settings: Mapping[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """A generation config with arguments of `generate` in the place of its own values.

    Args:
        config: A model's own; left as it is.
        settings: Values by name; None stands for the model's own. `max_length` alone takes the
            place of the model's `max_new_tokens`, beside which `generate` would pass over it.

    Returns:
        The new config, and those of `settings` that are no part of one.
    """
    config = copy.deepcopy(config)
    given = {name: value for name, value in settings.items() if value is not None}
    whole: GenerationConfig | None = given.pop("generation_config", None)
    if whole is not None:
        whole_values = {k: v for k, v in whole.to_dict().items() if v is not None}
        whole_values.pop("transformers_version", None)
        given = whole_values | given
    others = config.update(**given)
    if "max_new_tokens" in given:
        config.max_length = None
    elif "max_length" in given:
        config.max_new_tokens = None
    clear_idle_flags(config)
    return config, others


def most_new_tokens(config: GenerationConfig) -> int:
    """Most tokens that are generated for a row of an encoder-decoder."""
    if config.max_new_tokens is not None:
        return config.max_new_tokens
    if config.max_length is not None:
        return config.max_length - 1  # The start token counts there.
    return _NEW_TOKENS_BY_DEFAULT


def set_decoding(config: GenerationConfig, values: Mapping[str, Any]) -> None:
    """Puts decoding values in the place of those in `config`, with the cache on by default.

    `Trainer.__init__` writes `use_cache=False` into the model's config, from where it gets into the
    generation config of every model that is built from the same config object.

    Args:
        config: Changed in place.
        values: Fields of `GenerationConfig`.
    """
    config.use_cache = True
    config.update(**values)
    clear_idle_flags(config)
    if config.max_new_tokens is not None:
        config.max_length = None
