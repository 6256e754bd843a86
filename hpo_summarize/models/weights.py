"""Models made from weights in memory; weights that are shared, tied, or drawn for new tokens."""

from __future__ import annotations

from typing import cast

import torch
from transformers import PretrainedConfig, PreTrainedModel

from hpo_summarize.errors import ModelError

Weights = dict[str, torch.Tensor]


def from_memory(
    kind: type[PreTrainedModel], config: PretrainedConfig, weights: Weights
) -> PreTrainedModel:
    """A model as it would come from a checkpoint, on the memory of `weights`.

    Raises:
        ModelError: transformers cannot load them, or some are missing.
    """
    try:
        model, info = kind.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
        )
        reason = ", ".join(f"{name} is missing" for name in sorted(info["missing_keys"])[:1])
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if reason:
        raise ModelError(
            f"model: a '{config.model_type}' model cannot be loaded again as it would be saved "
            f"({reason}); take another model, or leave its depth and its tokens as they are"
        )
    return model


def saved_tensors(model: PreTrainedModel) -> Weights:
    """Parameters, tied ones once, and the buffers that a checkpoint has, without copying them."""
    saved = model.state_dict()
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named if name in saved}


def reloaded(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it comes back from a checkpoint of it, on the same memory.

    Raises:
        ModelError: transformers cannot load what it would write.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    return from_memory(type(model), config, saved_tensors(model))


def unshare(model: torch.nn.Module, only_trained: bool = False) -> None:
    """Gives the weights of a model memory of their own, in place.

    Args:
        model: Any model; parameters that are tied to each other stay so.
        only_trained: Whether parameters that get no gradient are left alone.
    """
    for parameter in model.parameters():
        if parameter.requires_grad or not only_trained:
            parameter.data = parameter.data.clone()


# Rows for new tokens.


def n_embeddings(model: PreTrainedModel) -> int:
    """The rows of a model's embeddings."""
    return len(cast(torch.Tensor, model.get_input_embeddings().weight))


def grow(model: PreTrainedModel, rows: int) -> None:
    """Gives a model embeddings and outputs for `rows` tokens, the new ones drawn.

    Raises:
        ModelError: transformers cannot do it for all of its layers.
    """
    try:
        model.resize_token_embeddings(rows, mean_resizing=True)
        reloaded(model)  # transformers 5.23 leaves some layers of T5Gemma as they are.
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # FSMT's is a NotImplementedError.
        raise ModelError(
            f"data.special_tokens: transformers cannot add tokens to a '{model.config.model_type}' "
            "model, whose encoder and decoder have embeddings of their own; leave the tokens that "
            "its tokenizer lacks out of data.special_tokens"
        ) from None


# Output layers. mT5's and FLAN-T5's have weights of their own, although their class says that they
# are tied to the embeddings; transformers 5.23 would tie them again with every resize.


def has_separate_head(model: PreTrainedModel) -> bool:
    """Whether the output layer has weights that no embeddings share."""
    head = model.get_output_embeddings().weight
    others = (m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding))
    return all(weight is not head for weight in others)


def keep_separate_head(model: PreTrainedModel) -> None:
    """Lets nothing tie an output layer again that has weights of its own."""
    if has_separate_head(model):
        keep_separate(model, f"{name_of(model, model.get_output_embeddings())}.weight")


def keep_separate(model: PreTrainedModel, weight: str) -> None:
    """Lets nothing tie a weight, given by its name, to another one again."""
    tied = model._tied_weights_keys or {}
    model._tied_weights_keys = {key: to for key, to in tied.items() if key != weight}
    model.all_tied_weights_keys.pop(weight, None)


def name_of(model: torch.nn.Module, wanted: torch.nn.Module) -> str:
    """The name of a module in a model."""
    return next(name for name, module in model.named_modules() if module is wanted)
