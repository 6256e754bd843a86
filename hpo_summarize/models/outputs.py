"""The log probabilities of a few labels, by which a loaded model is compared with the saved one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.errors import ModelError
from hpo_summarize.generation import IGNORED_LABEL
from hpo_summarize.io import write_text
from hpo_summarize.models.families import require_family
from hpo_summarize.models.lora import load_adapter, merged
from hpo_summarize.models.weights import reloaded

OUTPUTS = "outputs.json"  # Beside the weights of a checkpoint.
_ROWS, _TOKENS = 2, 48  # Rows of a comparison, and the tokens that are left of each.
# Largest difference of a log probability, in nats, that rounding explains: merging adapters in
# float32 gives about 1e-5, and a GPU may compute in TF32.
_ROUNDING_ON_CPU, _ROUNDING_ON_GPU = 1e-3, 2e-2
_NOISE = 0.02  # Standard deviation of what is added to adapters, most of which begin as zero.
# What peft puts on modules that are named one by one, in the names of parameters. Not ".lora_A":
# `all-linear` takes modules, too, that are called with other inputs only (LED's global attention).
_NEW_ROWS = ".token_adapter."
_ON_NAMED = (".lora_embedding_", ".modules_to_save.", _NEW_ROWS)

Batch = Mapping[str, torch.Tensor]


def first_rows(
    dataset: Any, collate: Callable[[list[Any]], Batch], n_tokens: int = _TOKENS
) -> Batch | None:
    """The start of the first rows of a data set as a batch; None where they make none.

    Args:
        dataset: Rows with `input_ids`, `attention_mask` and `labels`, as lists, arrays or tensors.
        collate: The trainer's collator.
        n_tokens: Tokens that are left of each text.
    """
    columns = ("input_ids", "attention_mask", "labels")
    try:
        rows = [dataset[row] for row in range(min(_ROWS, len(dataset)))]
        if not all(len(row["input_ids"]) and len(row["labels"]) for row in rows):
            return None
        return collate(
            [{key: row[key][:n_tokens] for key in columns if key in row} for row in rows]
        )
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
    return found[labels != IGNORED_LABEL].tolist()


def _decoder_inputs(model: Any, labels: torch.Tensor) -> torch.Tensor:
    base = unwrap_peft_model(model)
    return require_family(base.config).decoder_inputs(base, labels)


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
    """Records the log probabilities that a model gives to the labels of a batch."""
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


# What is checked before the first trial.


def check_gradients(model: Any) -> None:
    """Refuses adapters on modules that the model does not call, such as `shared` of BART and T5.

    Args:
        model: After a backward pass.

    Raises:
        ModelError: No weight of such a module has a gradient.
    """
    reached: dict[tuple[str, str], bool] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and (mark := next((m for m in _ON_NAMED if m in name), None)):
            key = mark, name.partition(mark)[0].rpartition(".")[2]
            reached[key] = reached.get(key, False) or weight.grad is not None
    for mark, module in (key for key, is_reached in reached.items() if not is_reached):
        what, remedy = "an adapter or a copy of it", "name 'embed_tokens' or 'lm_head' instead"
        if mark == _NEW_ROWS:
            what = "the embeddings of added tokens"
            remedy = "leave tokens that the tokenizer lacks out of data.special_tokens"
        raise ModelError(
            f"lora: a '{unwrap_peft_model(model).config.model_type}' model does not call "
            f"'{module}' under that name, so peft does not train {what}; {remedy}"
        )


def check_saved(model: Any, batch: Batch, build: Callable[[], Any]) -> None:
    """Compares a model with the ones that are loaded from what it would save.

    These are a checkpoint of it; with LoRA its adapter on a fresh base, and the merged model.

    Args:
        model: Is changed: adapters are merged.
        batch: Rows to compare by.
        build: Makes a fresh model with the same settings.

    Raises:
        ModelError: One of them gives other probabilities.
    """
    if isinstance(model, PeftModel):
        device = next(model.parameters()).device
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(_NOISE * torch.randn_like(weight))
    expected = label_log_probs(model, batch)
    if isinstance(model, PeftModel):
        model.to("cpu")  # One model at a time is on a device.
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            fresh = build()
            load_adapter(fresh, Path(folder))
        _compare("an adapter that is loaded on a fresh base", fresh, batch, expected)
        del fresh
        model = merged(model.to(device))
        _compare("the model with its adapters merged", model, batch, expected)
    _compare("the model that is loaded again", reloaded(model), batch, expected)


def _compare(what: str, model: Any, batch: Batch, expected: list[float]) -> None:
    if differs := difference(model, batch, expected):
        raise ModelError(
            f"model: {what} is not the one that was trained ({differs}), so that the score of a "
            "trial would not be that of its model; check lora.target_modules, lora.modules_to_save "
            "and the other keys of lora, or take another model"
        )
