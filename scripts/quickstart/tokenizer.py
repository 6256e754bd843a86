"""A small Korean BPE tokenizer, trained on the texts it is given."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .dialogues import SPEAKERS

SPECIAL_TOKENS = {
    "bos_token": "<s>",
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
BOS, PAD, EOS, UNK, MASK = range(5)  # their ids, as in BART
VOCAB_SIZE = 2300
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # what an unknown character is spelled with


def build_tokenizer(texts: Sequence[str], max_tokens: int) -> PreTrainedTokenizerFast:
    """Trains a tokenizer that gives any text back when it decodes.

    The speakers are ordinary added tokens: decoding with `skip_special_tokens` keeps them.

    Args:
        texts: What to learn the vocabulary of 2,300 tokens from.
        max_tokens: The longest input of the model that goes with it.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            # "never": a particle after a speaker's name must not get a space in front of it.
            pre_tokenizers.Metaspace(prepend_scheme="never"),
            pre_tokenizers.Punctuation(),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)]
    )
    tokenizer.train_from_iterator(map(_without_speakers, texts), _build_trainer())
    tokenizer = _with_bytes(tokenizer)
    tokenizer.add_tokens([AddedToken(speaker, normalized=False) for speaker in SPEAKERS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
        **SPECIAL_TOKENS,
    )


def _build_trainer() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPEAKERS) - len(BYTES),
        special_tokens=list(SPECIAL_TOKENS.values()),
        show_progress=False,
    )


def _with_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Adds the byte tokens, which the trainer of `tokenizers` cannot add as ordinary tokens."""
    description = json.loads(tokenizer.to_str())
    vocab = description["model"]["vocab"]
    vocab.update({byte: len(vocab) + i for i, byte in enumerate(BYTES)})
    description["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(description))


def _without_speakers(text: str) -> str:
    for speaker in SPEAKERS:
        text = text.replace(speaker, "")
    return text
