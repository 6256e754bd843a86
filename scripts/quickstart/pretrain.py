"""The quick start's checkpoint: a tiny BART, trained from scratch on the corpus by denoising.

The model sees dialogues and summaries as separate documents and learns to restore them. It never
sees a dialogue with its summary: that task is left to the quick start's search.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import BartConfig, BartForConditionalGeneration

from .denoising import draw_batches
from .tokenizer import BOS, EOS, PAD, build_tokenizer

MAX_POSITIONS = 320
N_STEPS = 900
BATCH_SIZE = 32
PEAK_LEARNING_RATE = 3e-3
N_THREADS = 1  # more would let the order of additions, and so the weights, depend on the machine


def build_model(vocab_size: int) -> BartForConditionalGeneration:
    """Builds a BART of 1.1 million parameters with random weights."""
    config = BartConfig(
        vocab_size=vocab_size,
        max_position_embeddings=MAX_POSITIONS,
        d_model=128,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=384,
        decoder_ffn_dim=384,
        # About 1 / sqrt(d_model). With BART's 0.02, made for 1,024 dimensions, attention starts so
        # flat that the decoder learns to write without ever looking at the encoder.
        init_std=0.08,
        bos_token_id=BOS,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=EOS,
        forced_eos_token_id=EOS,
    )
    model = BartForConditionalGeneration(config)
    model.generation_config.max_new_tokens = 64
    return model


def pretrain(
    model: BartForConditionalGeneration,
    documents: Sequence[Sequence[int]],
    newline: int,
    n_steps: int = N_STEPS,
    seed: int = 0,
) -> None:
    """Trains the model in place to restore noised documents; prints the loss now and then.

    Args:
        model: The model, with random weights.
        documents: Token ids without special tokens.
        newline: The token between two turns.
        n_steps: Optimiser steps, in batches of 32 documents.
        seed: Seed of documents and noise.
    """
    batches = draw_batches(documents, newline, BATCH_SIZE, np.random.default_rng(seed))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PEAK_LEARNING_RATE, n_steps, pct_start=0.1
    )
    began, losses = time.monotonic(), []
    model.train()
    for step, batch in zip(range(1, n_steps + 1), batches):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 100 == 0:
            mean, seconds = np.mean(losses[-100:]), time.monotonic() - began
            print(f"step {step} of {n_steps}: loss {mean:.3f}, {seconds:.0f} s", flush=True)


def write_checkpoint(texts: Sequence[str], folder: Path, seed: int = 0) -> None:
    """Trains tokenizer and model on the texts and writes both to the folder."""
    torch.set_num_threads(N_THREADS)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(texts, MAX_POSITIONS)
    documents = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    model = build_model(len(tokenizer))
    print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens")
    pretrain(model, documents, tokenizer.get_vocab()["\n"], seed=seed)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
