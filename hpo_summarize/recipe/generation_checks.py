"""Fields of `GenerationConfig` that do nothing here, or that would make summaries unrepeatable."""

from __future__ import annotations

from typing import Any

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


def unusable_decoding(name: str, value: Any) -> str | None:
    """Says why a fixed field of the decoding cannot have this value here, or None."""
    if name == "use_cache":
        reason = "generation always uses the key-value cache; drop it"
    elif value is None or value is False or name not in _REFUSED:
        return None
    else:
        reason = _REFUSED[name]
    return f"cannot be used here (value {value!r}): {reason}"


def why_never_decoded(name: str) -> str | None:
    """Says why a field of the decoding cannot be searched in a recipe, or None."""
    return _REFUSED.get(name)
