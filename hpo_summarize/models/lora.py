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
    get_peft_model,
    set_peft_model_state_dict,
)
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hpo_summarize.config.parameters import LORA_WORDS, WORDS_OF_LORA_KEYS
from hpo_summarize.config.schema import LoraSection
from hpo_summarize.errors import ModelError
from hpo_summarize.models.families import require_family
from hpo_summarize.models.weights import has_separate_head, keep_separate, name_of, unshare


class AdaptedModel(PeftModelForSeq2SeqLM):
    """A model with adapters whose new embeddings are trained row by row.

    Its checkpoints hold those rows and not the whole matrix, 92 MB for KoBART, which peft 0.21
    writes at every epoch because the matrix has grown.
    """

    def save_pretrained(self, save_directory: str, *args: Any, **kwargs: Any) -> None:
        """Like the parent's, with `save_embedding_layers=False` where nothing else is given."""
        kwargs.setdefault("save_embedding_layers", False)
        super().save_pretrained(save_directory, *args, **kwargs)


_SAVING_ROWS = {TaskType.SEQ_2_SEQ_LM: AdaptedModel}


def lora_settings(section: LoraSection, values: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `peft.LoraConfig`.

    Args:
        section: What the recipe fixes.
        values: A trial's values in its place, by our names.
    """
    fixed = {WORDS_OF_LORA_KEYS.get(key, key): value for key, value in section.model_dump().items()}
    return {LORA_WORDS.get(name, name): value for name, value in {**fixed, **values}.items()}


def with_lora(model: PreTrainedModel, settings: Mapping[str, Any], new: Sequence[int]) -> PeftModel:
    """Puts adapters on a model, in place.

    Args:
        model: The model, whose modules that get an adapter are replaced.
        settings: From `lora_settings`.
        new: Ids of new tokens. LoRA freezes the embeddings, so theirs would stay as they were
            drawn; they are trained unless the settings have `trainable_token_indices`.

    Raises:
        ModelError: peft refuses, or a setting names a module that is not there.
    """
    settings = {**settings, "task_type": require_family(model.config).task_type}
    try:
        _check_patterns(model, settings)
        config = LoraConfig(**settings)
        _untie_changed(model, config)
        saves_rows = False
        if new and "trainable_token_indices" not in settings:
            config.trainable_token_indices = _rows_to_train(model, list(new), config)
            # Below an adapter the new rows stay as they were drawn, and have to be saved.
            saves_rows = not any(_is_target(config, name) for name in _with_tokens(model))
        with warnings.catch_warnings():
            # The weights are not tied any more, see `_untie_changed`.
            warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`")
            if saves_rows:
                # Where the base came from is for `PeftModel.from_pretrained`.
                config.base_model_name_or_path = model.name_or_path or None
                return _SAVING_ROWS[settings["task_type"]](model, config)
            return get_peft_model(model, config)
    except (ModelError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # peft raises ValueError, TypeError, IndexError, re.error and more.
        raise _refused(model, "put on", error) from None


def merged(model: PeftModel) -> PreTrainedModel:
    """The base model with the adapters in its weights, in place.

    Raises:
        ModelError: peft cannot merge them.
    """
    unshare(model)  # The weights below the adapters may be those of other models, too.
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
    copied = config.modules_to_save or ()
    return _is_target(config, name) or any(f".{name}".endswith(f".{one}") for one in copied)


def _is_target(config: LoraConfig, name: str) -> bool:
    found = check_target_module_exists(config, name)  # An object that is true where it is excluded.
    return isinstance(found, bool | re.Match) and bool(found)


def _with_tokens(model: PreTrainedModel) -> list[str]:
    """The names of the modules that have a row for each token."""
    layers = (model.get_input_embeddings(), model.get_output_embeddings())
    return sorted({name_of(model, layer) for layer in layers})


def _rows_to_train(
    model: PreTrainedModel, new: list[int], config: LoraConfig
) -> list[int] | dict[str, list[int]] | None:
    """The new rows by module; a module that is changed as a whole needs none of its own."""
    layers = _with_tokens(model)
    rest = [name for name in layers if not _is_changed(config, name)]
    if has_separate_head(model):
        return dict.fromkeys(rest, new) or None
    return new if rest == layers else None


def _check_patterns(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Refuses names of modules that the model does not have; peft 0.21 silently ignores them.

    Names in a list or as keys match the ends of whole names; a string is an expression for
    whole names, and peft itself refuses one in `target_modules` that matches nothing.
    """
    modules = [name for name, _ in model.named_modules()]
    keys = ("target_modules", "modules_to_save", "exclude_modules", "rank_pattern", "alpha_pattern")
    for key in keys:
        given = settings.get(key) or ()
        if isinstance(given, str):
            wanted = {} if key == "target_modules" else {given: (given, "whose whole name matches")}
        else:
            escape = str if isinstance(given, Mapping) else re.escape
            wanted = {one: (rf"(.*\.)?({escape(one)})", "that ends in") for one in given}
        for pattern, (expression, what) in wanted.items():
            if not any(re.fullmatch(expression, name) for name in modules):
                raise ModelError(
                    f"lora.{key}: a '{model.config.model_type}' model has no module {what} "
                    f"{pattern!r}; take one of its own, such as {modules[-1]!r}, or drop it"
                )
