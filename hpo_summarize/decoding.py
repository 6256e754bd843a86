"""Generation configs that can be used and saved."""

from __future__ import annotations

import copy
import warnings
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

    Raises:
        ValueError: See `put_values`.
    """
    config = copy.deepcopy(config)
    given = {name: value for name, value in settings.items() if value is not None}
    whole: GenerationConfig | None = given.pop("generation_config", None)
    if whole is not None:
        whole_values = {k: v for k, v in whole.to_dict().items() if v is not None}
        whole_values.pop("transformers_version", None)
        given = whole_values | given
    return config, put_values(config, given)


def put_values(
    config: GenerationConfig, values: Mapping[str, Any], later: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Puts values in the place of those in `config`, which keeps none that contradicts them.

    Of the two names of a limit the one in `values` counts. A least length of `config` that is above
    the most tokens in `values` goes with a warning; `generate` would write only texts that are cut.

    Args:
        config: Changed in place.
        values: Values by name.
        later: Values that will take the place of those in `config`.

    Returns:
        Those of `values` that are no fields of a generation config.

    Raises:
        ValueError: A least length in `values` is above the most tokens.
    """
    others = config.update(**values)
    for new, whole in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if values.get(whole) is not None and values.get(new) is None:
            setattr(config, new, None)
        elif getattr(config, new) is not None:
            setattr(config, whole, None)
    if later is None:
        _fit_least_length(config, values)
    clear_idle_flags(config, later)
    return others


def _fit_least_length(config: GenerationConfig, values: Mapping[str, Any]) -> None:
    most = most_new_tokens(config)
    for name, extra in (("min_new_tokens", 0), ("min_length", 1)):  # The start token counts there.
        least = getattr(config, name)
        if least is None or least <= most + extra:
            continue
        rule = f"{name} is {least}, and at most {most} new tokens are generated"
        if values.get(name) is not None:
            raise ValueError(f"{rule}; lower {name}, or raise max_new_tokens")
        warnings.warn(f"{rule}: the model's own {name} is dropped", stacklevel=2)
        setattr(config, name, None)


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

    Raises:
        ValueError: See `put_values`.
    """
    config.use_cache = True
    put_values(config, values)
