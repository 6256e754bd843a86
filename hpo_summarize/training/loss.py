"""The loss of an encoder-decoder: the mean over all tokens of an optimizer step.

transformers 5.23 takes the **kwargs in the forward of BART and T5 for a promise to divide the loss
by `num_items_in_batch` (trainer.py, `model_accepts_loss_kwargs`). They ignore it, and the loss
comes out multiplied by the accumulation steps and by the number of processes. Delete when
`test_the_loss_does_not_grow_with_the_accumulation_steps` passes on the stock class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from transformers import Trainer

from hpo_summarize.generation import IGNORED_LABEL
from hpo_summarize.models.families import require_family
from hpo_summarize.training.trial import TrialFailed


def token_mean(
    outputs: Any, labels: torch.Tensor, n_tokens: torch.Tensor | int | None, smoothing: float
) -> torch.Tensor:
    """Cross entropy summed over the tokens of a batch, divided by those of the whole step.

    Args:
        outputs: Of the model, with `logits` of shape `(rows, tokens, vocabulary)`.
        labels: Shape `(rows, tokens)`.
        n_tokens: Tokens with a label in the whole step; None: those of the batch.
        smoothing: Label smoothing, 0 to 1.
    """
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        label_smoothing=smoothing,
        reduction="sum",
    )
    return loss / (labels.ne(IGNORED_LABEL).sum() if n_tokens is None else n_tokens)


def with_decoder_inputs(base: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the decoder its shifted labels; `Trainer.compute_loss` takes out the labels."""
    inputs = {**inputs, "use_cache": False}
    if "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = require_family(base.config).decoder_inputs(
            base, inputs["labels"]
        )
    return inputs


def check_finite(accelerator: Accelerator, loss: torch.Tensor) -> None:
    """Fails a trial whose loss is not finite; no later one would be.

    Raises:
        TrialFailed: It is not finite on one of the processes.
    """
    finite = torch.isfinite(loss).all()
    if accelerator.num_processes > 1:
        finite = accelerator.gather(finite).all()
    if not finite:
        raise TrialFailed("the training loss is not a finite number")


def share_of_own_loss(
    trainer: Trainer,
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    n_tokens: torch.Tensor | int | None,
) -> tuple[torch.Tensor, Any]:
    """The loss of the model's forward, a mean over a batch, by its share of the whole step.

    Returns:
        The loss and the outputs of the model.
    """
    outputs = model(**inputs, use_cache=False)
    loss, tokens = outputs["loss"], inputs["labels"].ne(IGNORED_LABEL).sum()
    if not tokens:  # Rows that only fill up the last step of an epoch.
        loss = outputs["logits"].sum() * 0
    if n_tokens is not None:
        loss = loss * tokens / n_tokens
        if trainer.args.average_tokens_across_devices:  # As the parent does.
            loss = loss * trainer.accelerator.num_processes
    return loss, outputs
