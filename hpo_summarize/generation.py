"""Generation configs, and counts of what was generated."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import GenerationConfig

from hpo_summarize.config.parameters import BEAMS_ONLY, SAMPLING_ONLY

IGNORED_LABEL = -100  # Of a position that counts neither in the loss nor in a text.
_NEW_TOKENS_BY_DEFAULT = 20  # Of `generate`, where neither limit is set.

# Shares of the rows. With no more distinct summaries than this, a model hardly reads the dialogue:
# small BARTs without pretraining wrote 1 to 23 texts for 500 dialogues.
FEW_DISTINCT = 0.05
# From here on the limit, and not the model, decides where a typical summary ends.
MANY_CUT = 0.5
_N_EXAMPLES = 2
_SHOWN = 200  # Characters of an example in a printed line.


@dataclass(frozen=True)
class Summaries:
    """Generated summaries.

    Attributes:
        texts: One a row.
        n_cut: How many reached the length limit without an end token of the model's own.
    """

    texts: list[str]
    n_cut: int

    def __add__(self, other: Summaries) -> Summaries:
        return Summaries([*self.texts, *other.texts], self.n_cut + other.n_cut)

    def describe(self) -> dict[str, Any]:
        """Counts in JSON's types.

        Returns:
            `n_rows`; `n_distinct` texts, where runs of white space count as one space; `n_empty`;
            `n_cut`; and as `examples` the two most frequent texts.
        """
        texts = Counter(" ".join(text.split()) for text in self.texts)
        return {
            "n_rows": len(self.texts),
            "n_distinct": len(texts),
            "n_empty": texts[""],
            "n_cut": self.n_cut,
            "examples": [text for text, _ in texts.most_common(_N_EXAMPLES)],
        }


def count_in_words(description: Mapping[str, Any]) -> str:
    """The counts of `Summaries.describe` in one line."""
    counts = "{n_distinct} distinct of {n_rows}, {n_empty} empty, {n_cut} cut at the length limit"
    return counts.format_map(description)


def degenerate_note(description: Mapping[str, Any] | None) -> str | None:
    """A note on degenerate summaries, whatever they score; None if they are fine.

    They are degenerate if all are empty, if all or nearly all are equal (`FEW_DISTINCT`), or if
    most end at the length limit (`MANY_CUT`).

    Args:
        description: From `Summaries.describe`; None where there is none.
    """
    if description is None:
        return None
    n_rows, n_distinct, n_cut = (description[key] for key in ("n_rows", "n_distinct", "n_cut"))
    found = []
    if n_rows and description["n_empty"] == n_rows:
        found.append(f"all {n_rows} summaries are empty")
    elif n_distinct == 1 < n_rows:
        found.append(f"all {n_rows} summaries are the same text")
    elif n_rows and n_distinct <= n_rows * FEW_DISTINCT:
        found.append(f"only {n_distinct} distinct summaries for {n_rows} dialogues")
    if n_rows and n_cut >= n_rows * MANY_CUT:
        found.append(f"{n_cut} of {n_rows} summaries are cut at the length limit")
    return "; ".join(found) or None


def summaries_in_words(description: Mapping[str, Any] | None) -> list[str]:
    """Lines to print below a result: the counts, and the note with an example if there is one."""
    if description is None:
        return []
    lines = [f"summaries {count_in_words(description)}"]
    if note := degenerate_note(description):
        lines.append(f"note     {note}: {description['examples'][0][:_SHOWN]!r}")
    return lines


def count_cut(ids: np.ndarray, config: GenerationConfig) -> int:
    """Number of rows that ended at the length limit and not at an end token.

    Args:
        ids: Output of `generate` of an encoder-decoder, of shape `(rows, tokens)`: the start token
            and the generated ones, padded at the end.
        config: What they were generated with.
    """
    generated = ids[:, 1:]  # The start token of BART is its end token, too.
    end_tokens = [] if config.eos_token_id is None else config.eos_token_id
    ends = np.isin(generated, end_tokens)
    cut = ~ends.any(axis=1)
    if config.forced_eos_token_id is not None and generated.shape[1] >= most_new_tokens(config):
        # BART's checkpoints force an end token at the limit.
        cut |= ends.argmax(axis=1) >= most_new_tokens(config) - 1
    return int(cut.sum())


def clear_idle_flags(config: GenerationConfig, values: Mapping[str, Any] | None = None) -> None:
    """Clears flags that cannot act, which `save_pretrained` refuses.

    `facebook/bart-base` has `early_stopping` for its 4 beams, and a trial may run with 1.

    Args:
        config: Changed in place.
        values: Values that will replace those in `config`.
    """
    values = values or {}
    if not values.get("do_sample", config.do_sample):
        for name in SAMPLING_ONLY:
            setattr(config, name, None)
    if (values.get("num_beams", config.num_beams) or 1) == 1:
        for name in BEAMS_ONLY:
            setattr(config, name, None)


def with_settings(
    config: GenerationConfig, settings: Mapping[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """A copy of a generation config, updated with arguments of `generate`.

    Args:
        config: A model's own; left as it is.
        settings: Values by name; None: the model's own. `max_length` alone replaces the model's
            `max_new_tokens`, beside which `generate` ignores it.

    Returns:
        The copy, and those of `settings` that are no fields of it.

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
    """Updates a generation config, and clears what contradicts the new values.

    Of the two names of a limit the one in `values` counts. A least length of `config` that is above
    the most tokens in `values` is dropped with a warning: every text would be cut.

    Args:
        config: Changed in place.
        values: Values by name.
        later: Values that will replace those in `config`.

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
    """`put_values` with the KV cache on by default.

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
