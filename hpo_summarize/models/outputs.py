"""What a model says of a few rows, by which a loaded model is compared with the one in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.io import write_text
from hpo_summarize.models.families import require_family

OUTPUTS = "outputs.json"  # Beside the weights of a checkpoint.
_IGNORED_LABEL = -100
_ROWS, _TOKENS = 2, 48  # Rows of a comparison, and the tokens that are left of each.
# Largest difference of a log probability, in nats, that rounding explains: merging adapters in
# float32 gives about 1e-5, and a GPU may compute in TF32.
_ROUNDING_ON_CPU, _ROUNDING_ON_GPU = 1e-3, 2e-2

Batch = Mapping[str, torch.Tensor]


def first_rows(dataset: Any, collate: Callable[[list[Any]], Batch]) -> Batch | None:
    """The start of the first rows of a data set as a batch; None where they make none.

    Args:
        dataset: Rows with `input_ids`, `attention_mask` and `labels`, as lists, arrays or tensors.
        collate: The trainer's collator.
    """
    columns = ("input_ids", "attention_mask", "labels")
    try:
        rows = [dataset[row] for row in range(min(_ROWS, len(dataset)))]
        if not all(len(row["input_ids"]) and len(row["labels"]) for row in rows):
            return None
        return collate([{key: row[key][:_TOKENS] for key in columns if key in row} for row in rows])
    except Exception:  # None, a stream, several sets, or a collator that needs other columns.
        return None


def label_log_probs(model: Any, batch: Batch) -> list[float]:
    """The log probability, in nats, of each label token of a batch, without dropout.

    Every weight that decides about an output has a part in it. The mode of the model is restored.
    """
    device = next(model.parameters()).device
    inputs: dict[str, Any] = {key: value.to(device) for key, value in batch.items()}
    labels = inputs.pop("labels")
    if "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = _decoder_inputs(model, labels)
    inputs["use_cache"] = False  # As in training; T5Gemma's sliding window acts otherwise with it.
    # `Accelerator.prepare_model` puts mixed precision around the forward of a model in training. A
    # loaded model is without it, and would differ by the rounding of bfloat16.
    forward = getattr(model, "_original_forward", model)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = forward(**inputs).logits
    finally:
        model.train(was_training)
    log_probs = logits.float().log_softmax(dim=-1)
    found = log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return found[labels != _IGNORED_LABEL].tolist()


def difference(model: Any, batch: Batch, expected: list[float], device: str = "cpu") -> str | None:
    """How a model differs from one that gave `expected`, in words; None within rounding.

    Args:
        model: The model.
        batch: The rows.
        expected: From `label_log_probs`.
        device: Type of the device on which that was measured.
    """
    found = torch.tensor(label_log_probs(model, batch))
    largest = (found - torch.tensor(expected)).abs().max().item()
    on_cpu = {device, next(model.parameters()).device.type} == {"cpu"}
    if largest <= (_ROUNDING_ON_CPU if on_cpu else _ROUNDING_ON_GPU):
        return None
    return f"the log probability of a label token differs by up to {largest:.3g}"


def write_outputs(model: Any, batch: Batch, path: Path) -> None:
    """Records what a model says of a batch."""
    # The Trainer writes the tokenizer's special tokens into the config, where T5Gemma looks for the
    # first token of its decoder; a model that is loaded on its own reads others.
    batch = {**batch, "decoder_input_ids": _decoder_inputs(model, batch["labels"])}
    content = {
        "batch": {key: value.tolist() for key, value in batch.items()},
        "log_probs": label_log_probs(model, batch),
        "device": next(model.parameters()).device.type,
    }
    write_text(path, json.dumps(content))


def difference_from(path: Path, model: Any) -> str | None:
    """`difference` from the record of `write_outputs`; None also where there is no record."""
    if not path.is_file():
        return None
    recorded = json.loads(path.read_text(encoding="utf-8"))
    batch = {key: torch.tensor(value) for key, value in recorded["batch"].items()}
    return difference(model, batch, recorded["log_probs"], recorded["device"])


def _decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    base = unwrap_peft_model(model)
    return require_family(base.config).decoder_inputs(base, labels)
