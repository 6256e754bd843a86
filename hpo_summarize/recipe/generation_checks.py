"""Fields of `GenerationConfig` that do nothing here, or that would make summaries unrepeatable."""

from __future__ import annotations

from collections.abc import Container
from typing import TYPE_CHECKING, Any

from hpo_summarize import names

if TYPE_CHECKING:
    from transformers import GenerationConfig

_FORM = "only the summaries are read, whatever else comes with them; drop it"
_ASSISTANT = "summaries are decoded in batches, with nothing that drafts them before; drop it"

# By field: why it is refused, and what to do.
_REFUSED = {
    **dict.fromkeys(("output_attentions", "output_hidden_states"), _FORM),
    **dict.fromkeys(("output_logits", "output_scores"), _FORM),
    **dict.fromkeys(("assistant_confidence_threshold", "assistant_early_exit"), _ASSISTANT),
    **dict.fromkeys(("assistant_ensemble_weight", "assistant_lookbehind"), _ASSISTANT),
    **dict.fromkeys(("num_assistant_tokens", "num_assistant_tokens_schedule"), _ASSISTANT),
    **dict.fromkeys(("target_lookbehind", "is_assistant", "use_mtp"), _ASSISTANT),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size"), _ASSISTANT),
    **dict.fromkeys(("speculation_type", "token_healing"), _ASSISTANT),
    "max_time": "summaries would depend on the speed of the machine; set max_new_tokens",
    "low_memory": "transformers does nothing with it any more; drop it",
    "prefill_chunk_size": "the dialogue goes through the encoder as a whole; drop it",
    "max_cache_len": "the key-value cache is no longer than the summaries; drop it",
    "cache_config": "no encoder-decoder has a quantised cache, which alone reads it; drop it",
    "continuous_batching_config": "evaluation has batches of its own; drop it",
}
_LEAST = ("min_length", "min_new_tokens")
_BY_HUB_OR_FORM = (*names.HUB_DECODING, "num_return_sequences", "return_dict_in_generate")


def unusable_decoding(name: str, value: Any) -> str | None:
    """Says why a fixed field of the decoding cannot have this value here, or None."""
    if name == "use_cache":
        reason = "generation always uses the key-value cache; drop it"
    elif value is None or value is False or name not in _REFUSED:
        return None
    else:
        reason = _REFUSED[name]
    return f"cannot be used here (value {value!r}): {reason}"


def foreign_settings(config: GenerationConfig, given: Container[str]) -> dict[str, Any]:
    """Values of a checkpoint's own decoding that cannot be used on other data, or not here at all.

    Its least length, such as the 56 tokens of `facebook/bart-large-cnn`, goes with its most tokens,
    whose place another limit has taken; and it has what no recipe may set.

    Args:
        config: The checkpoint's own.
        given: Names that the recipe fixes or searches.
    """
    found = {name: getattr(config, name, None) for name in (*_LEAST, *_REFUSED, *_BY_HUB_OR_FORM)}
    return {
        name: value
        for name, value in found.items()
        if name not in given and value and value != names.defaults().get(name)
    }


def why_never_decoded(name: str) -> str | None:
    """Says why a field of the decoding cannot be searched in a recipe, or None."""
    return _REFUSED.get(name)
