"""LoRA through peft: its settings, the embeddings of new tokens, and what its checkpoints hold."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModelForSeq2SeqLM, TaskType
from transformers import PreTrainedModel

from hpo_summarize import names
from hpo_summarize.errors import ModelError
from hpo_summarize.model.pretrained import has_separate_head, name_of
from hpo_summarize.recipe import LoraSection

# Ways to begin the adapters that leave the weights below them alone; the others, PiSSA or OLoRA,
# take out of those what they put into the adapters.
_LEAVES_BASE = (True, False, "gaussian", "orthogonal", "mica")


class AdaptedModel(PeftModelForSeq2SeqLM):
    """A model with adapters whose new embeddings are trained row by row.

    Its checkpoints hold those rows and not the whole matrix, 92 MB for KoBART, which peft would
    write at every epoch because the matrix has grown.
    """

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Like the parent's, with `save_embedding_layers=False` where nothing else is given."""
        kwargs.setdefault("save_embedding_layers", False)
        super().save_pretrained(save_directory, *args, **kwargs)


def lora_settings(section: LoraSection, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `peft.LoraConfig`.

    Args:
        section: What the recipe fixes.
        values: A trial's values in its place, by our names.
    """
    words = {"alpha": "lora_alpha", "dropout": "lora_dropout"}
    fixed = {words.get(key, key): value for key, value in section.model_dump().items()}
    sampled = {names.LORA_WORDS.get(name, name): value for name, value in values.items()}
    return {"task_type": TaskType.SEQ_2_SEQ_LM, **fixed, **sampled}


def leaves_base(settings: Mapping[str, Any]) -> bool:
    """Whether adapters with these settings begin without a change of the weights below them."""
    return settings.get("init_lora_weights", True) in _LEAVES_BASE


def with_lora(
    model: PreTrainedModel, settings: Mapping[str, Any], new: Sequence[int]
) -> PeftModelForSeq2SeqLM:
    """Puts adapters on a model, in place.

    Args:
        model: The model, whose modules that get an adapter are replaced.
        settings: From `lora_settings`.
        new: Ids of new tokens. LoRA freezes the embeddings, so theirs would stay as they were
            drawn; they are trained unless the settings have `trainable_token_indices`.

    Raises:
        ModelError: peft refuses, or a setting names a module that is not there.
    """
    kind, settings = PeftModelForSeq2SeqLM, dict(settings)
    if new and "trainable_token_indices" not in settings:
        kind = AdaptedModel
        settings["trainable_token_indices"] = _rows_to_train(model, list(new))
    # Where the base came from is for `PeftModel.from_pretrained`.
    settings["base_model_name_or_path"] = model.name_or_path or None
    try:
        _check_patterns(model, settings)
        with warnings.catch_warnings():
            # peft warns where this changes nothing, and goes on.
            warnings.filterwarnings("error", "You have requested `ensure_weight_tying`, but no")
            return kind(model, LoraConfig(**settings))
    except (ModelError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # peft raises ValueError, TypeError, IndexError, re.error and more.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"lora: the adapters cannot be put on a '{model.config.model_type}' model "
            f"({reason}); check lora.target_modules and the other keys of lora"
        ) from None


def _rows_to_train(model: PreTrainedModel, new: list[int]) -> list[int] | dict[str, list[int]]:
    if not has_separate_head(model):
        return new
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name_of(model, layer): new for layer in layers}


def _check_patterns(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Refuses names of modules that the model has not; peft passes over them without a word."""
    modules = [name for name, _ in model.named_modules()]
    for key in ("modules_to_save", "exclude_modules", "rank_pattern", "alpha_pattern"):
        patterns = settings.get(key) or ()
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if isinstance(patterns, str):
                text, what = pattern, "whose whole name matches"
            elif isinstance(patterns, Mapping):
                text, what = rf"(.*\.)?({pattern})", "that ends in"
            else:
                text, what = rf"(.*\.)?{re.escape(pattern)}", "that ends in"
            if not any(re.fullmatch(text, name) for name in modules):
                raise ModelError(
                    f"lora.{key}: a '{model.config.model_type}' model has no module {what} "
                    f"{pattern!r}; take one of its own, such as {modules[-1]!r}, or drop it"
                )
