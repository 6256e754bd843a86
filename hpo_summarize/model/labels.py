"""What the decoder of a model reads while it is trained, and which loss belongs to it."""

from __future__ import annotations

import sys
from typing import Any

import torch

from hpo_summarize.errors import ModelError


def decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    """The labels of a batch, shifted as the model's own forward shifts them.

    M2M100, NLLB-MoE, Blenderbot and SeamlessM4T of transformers 5.23 lack the public method; their
    forward calls the function `shift_tokens_right` of its module.

    Raises:
        ModelError: The model has neither.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        return model.prepare_decoder_input_ids_from_labels(labels=labels)
    shift = getattr(sys.modules[type(model).__module__], "shift_tokens_right", None)
    if shift is None:
        raise ModelError(
            f"model: a '{model.config.model_type}' model has no rule by which labels become inputs "
            "of its decoder, so it cannot be trained here; take a BART or T5 model, for example"
        )
    return shift(labels, model.config.pad_token_id, model.config.decoder_start_token_id)


def has_own_loss(model: Any) -> bool:
    """Whether a model is trained with more than the cross entropy of its next tokens.

    ProphetNet predicts several tokens ahead; NLLB-MoE balances its experts where its config has
    `output_router_logits`.
    """
    balances = getattr(model.config, "output_router_logits", False)
    return bool(balances) or hasattr(model, "_compute_loss")
