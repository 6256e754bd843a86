"""Tiny checkpoints of each family of models that a search takes, and recipes for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MBartConfig,
    MBartForConditionalGeneration,
    MT5Config,
    MT5ForConditionalGeneration,
    PegasusConfig,
    PegasusForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
)

from hpo_summarize.config.loader import parse_recipe
from hpo_summarize.config.schema import Recipe
from hpo_summarize.models import factory
from hpo_summarize.search_space import TrialSpec

CLASSES: dict[str, Any] = {
    "bart": (BartConfig, BartForConditionalGeneration),
    "mbart": (MBartConfig, MBartForConditionalGeneration),
    "pegasus": (PegasusConfig, PegasusForConditionalGeneration),
    "t5": (T5Config, T5ForConditionalGeneration),
    "mt5": (MT5Config, MT5ForConditionalGeneration),
}
WITH_DEPTH = ("bart", "mbart", "pegasus")
POSITIONS = 64
BART: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": POSITIONS,
}
T5: dict[str, Any] = {
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
}
DIALOGUE = "#Person1#: Hello Mina, shall we meet at the park?"
SUMMARY = "#Person1# and Mina meet at the park."


def ids_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The fields of a configuration that its tokenizer decides."""
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    ids = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}
    return {"vocab_size": len(tokenizer), "decoder_start_token_id": ids["eos_token_id"], **ids}


def save_checkpoint(
    folder: Path, family: str, tokenizer: PreTrainedTokenizerBase, **changes: Any
) -> Path:
    """Writes a random model of two layers a stack, with its tokenizer."""
    sizes = T5
    if family in WITH_DEPTH:
        # Outputs of different models differ with weights that far from zero.
        sizes = {**BART, "forced_eos_token_id": None, "init_std": 0.5}
    config_class, model_class = CLASSES[family]
    torch.manual_seed(0)
    model = model_class(config_class(**{**ids_of(tokenizer), **sizes, **changes}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_recipe(model: Path | str | dict[str, Any], **sections: Any) -> Recipe:
    """A recipe for a checkpoint at `model`, or for the section that it is."""
    content: dict[str, Any] = {
        "model": model if isinstance(model, dict) else {"name": str(model)},
        "data": {"train": "train.csv", "max_dialogue_tokens": 64, "max_summary_tokens": 32},
        "generation": {"max_new_tokens": 12},
        "output_dir": "out",
        **sections,
    }
    return parse_recipe(content)


def build_model(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, values: Mapping[str, Any], base: Any = None
) -> Any:
    """The model of a trial with these values."""
    return factory.build_model(recipe, tokenizer, TrialSpec.of(values), base)


def batch(tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """One dialogue with its summary as labels."""
    inputs = tokenizer(DIALOGUE, return_tensors="pt")
    labels = tokenizer(SUMMARY, return_tensors="pt")["input_ids"]
    return {key: inputs[key] for key in ("input_ids", "attention_mask")} | {"labels": labels}


def logits(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the model says of a batch, without dropout."""
    with torch.no_grad():
        return model.eval()(**inputs).logits


def train_a_little(
    model: PreTrainedModel, inputs: dict[str, torch.Tensor], steps: int = 4, rate: float = 0.05
) -> None:
    """A few large steps on one batch."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=rate)
    model.train()
    for _ in range(steps):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
