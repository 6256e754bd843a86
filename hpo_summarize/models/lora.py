"""LoRA through peft: its settings, the embeddings of new tokens, and what its checkpoints hold."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import (
    LoraConfig,
    PeftModel,
    PeftModelForSeq2SeqLM,
    TaskType,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hpo_summarize.config.parameters import LEAVES_BASE, LORA_WORDS
from hpo_summarize.config.schema import LoraSection
from hpo_summarize.errors import ModelError
from hpo_summarize.models.shared_base import has_separate_head, keep_separate, name_of


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
    sampled = {LORA_WORDS.get(name, name): value for name, value in values.items()}
    return {"task_type": TaskType.SEQ_2_SEQ_LM, **fixed, **sampled}


def leaves_base(settings: Mapping[str, Any]) -> bool:
    """Whether adapters with these settings begin without a change of the weights below them."""
    return settings.get("init_lora_weights", True) in LEAVES_BASE


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
    settings = dict(settings)
    # Where the base came from is for `PeftModel.from_pretrained`.
    settings["base_model_name_or_path"] = model.name_or_path or None
    try:
        _check_patterns(model, settings)
        config = LoraConfig(**settings)
        _untie_changed(model, config)
        kind = PeftModelForSeq2SeqLM
        if new and "trainable_token_indices" not in settings:
            layers = _with_tokens(model)
            settings["trainable_token_indices"] = _rows_to_train(model, list(new), config)
            # Below an adapter the new rows stay as they were drawn, and have to be saved.
            kind = kind if any(_is_target(config, name) for name in layers) else AdaptedModel
        with warnings.catch_warnings():
            # peft warns where this changes nothing, and goes on.
            warnings.filterwarnings("error", "You have requested `ensure_weight_tying`, but no")
            # The weights are not tied any more, see `_untie_adapted`.
            warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`")
            return kind(model, LoraConfig(**settings))
    except (ModelError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # peft raises ValueError, TypeError, IndexError, re.error and more.
        raise _refused(model, "put on", error) from None


def merged(model: PeftModel) -> PreTrainedModel:
    """The base model with the adapters in its weights, in place.

    Raises:
        ModelError: peft cannot merge them.
    """
    base = model.get_base_model()
    tied = getattr(base.config, "tie_word_embeddings", False)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied")
            warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`")
            whole = model.merge_and_unload()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise _refused(base, "merged into", error) from None
    # peft 0.21 writes False where the output layer has weights of its own. It unties the embeddings
    # of BART's encoder and decoder, too, of which the file holds one copy, and decides about the
    # scale of T5's outputs. transformers 5 reads weights that are in the file separately in any
    # case (`PreTrainedModel.tie_weights`).
    whole.config.tie_word_embeddings = tied
    return whole


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Gives a model the adapter weights that another one with the same settings has saved.

    Raises:
        ValueError: The file has other weights than the model.
    """
    saved = load_file(folder / "adapter_model.safetensors")
    result: Any = set_peft_model_state_dict(model, saved)
    # peft 0.21 writes the new embeddings once more for a tied output layer, and reads one of them.
    unknown = [key for key in result.unexpected_keys if ".token_adapter." not in key]
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    missing = trained & set(result.missing_keys)
    if unknown or missing:
        raise ValueError(f"{len(unknown)} of them are unknown, and {len(missing)} are missing")


def _refused(model: PreTrainedModel, what: str, error: Exception) -> ModelError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ModelError(
        f"lora: the adapters cannot be {what} a '{model.config.model_type}' model ({reason}); "
        "check lora.target_modules and the other keys of lora"
    )


def _untie_changed(model: PreTrainedModel, config: LoraConfig) -> None:
    """Gives modules that get an adapter, or are trained as a copy, weights of their own.

    A merge changes the weights in place. With tied ones it would change the embeddings along with
    the output layer, and the model would not be the one that was trained.
    """
    uses = Counter(id(module._parameters.get("weight")) for module in model.modules())
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and uses[id(weight)] > 1 and _is_changed(config, name):
            module.weight = torch.nn.Parameter(weight.detach().clone(), weight.requires_grad)
            keep_separate(model, f"{name}.weight")


def _is_changed(config: LoraConfig, name: str) -> bool:
    copied = [*(config.modules_to_save or ())]
    return _is_target(config, name) or any(f".{name}".endswith(f".{one}") for one in copied)


def _is_target(config: LoraConfig, name: str) -> bool:
    found = check_target_module_exists(config, name)  # An object that is true where it is excluded.
    return isinstance(found, bool | re.Match) and bool(found)


def _with_tokens(model: PreTrainedModel) -> set[str]:
    """The names of the modules that have a row for each token."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return {name_of(model, layer) for layer in layers}


def _rows_to_train(
    model: PreTrainedModel, new: list[int], config: LoraConfig
) -> list[int] | dict[str, list[int]] | None:
    """The new rows by module; a module that is changed as a whole needs none of its own."""
    layers = sorted(_with_tokens(model))
    rest = [name for name in layers if not _is_changed(config, name)]
    if has_separate_head(model):
        return dict.fromkeys(rest, new) or None
    return new if rest == layers else None


def _check_patterns(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Refuses names of modules that the model has not; peft passes over them without a word."""
    modules = [name for name, _ in model.named_modules()]
    keys = ("target_modules", "modules_to_save", "exclude_modules", "rank_pattern", "alpha_pattern")
    for key in keys:
        patterns = settings.get(key) or ()
        if key == "target_modules" and isinstance(patterns, str):
            continue  # peft refuses an expression that matches nothing.
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
