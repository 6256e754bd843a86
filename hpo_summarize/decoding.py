"""Generation configs that can be used and saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from hpo_summarize import names


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


def set_decoding(config: GenerationConfig, values: Mapping[str, Any]) -> None:
    """Puts the decoding values of a trial in the place of those in `config`, with the cache on.

    Args:
        config: Changed in place.
        values: Fields of `GenerationConfig`.
    """
    config.update(**values)
    config.use_cache = True
    clear_idle_flags(config)
    if config.max_new_tokens is not None:
        config.max_length = None
