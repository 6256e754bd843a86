"""Tokenizers of each kind that checkpoints come with, trained on a few texts."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    MBartTokenizer,
    PegasusTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

from hpo_summarize.models.tokenizer import train_tokenizer

Pieces = list[tuple[str, float]]


def unigram(texts: Sequence[str], special: list[str], after: Sequence[str] = ()) -> Pieces:
    """The pieces of a sentencepiece model, `special` before and `after` behind those learned."""
    core = Tokenizer(models.Unigram())
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=150 + len(special),
        special_tokens=special,
        unk_token="<unk>",
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    learned = [tuple(piece) for piece in json.loads(core.to_str())["model"]["vocab"]]
    return [*learned, *((piece, 0.0) for piece in after)]


def make_t5(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    sentinels = [f"<extra_id_{i}>" for i in range(99, -1, -1)]
    return T5Tokenizer(vocab=unigram(texts, ["<pad>", "</s>", "<unk>"], sentinels))


def make_mbart(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    special, after = ["<s>", "<pad>", "</s>", "<unk>"], [*FAIRSEQ_LANGUAGE_CODES, "<mask>"]
    pieces = unigram(texts, special, after)
    return MBartTokenizer(vocab=pieces, src_lang="en_XX", tgt_lang="en_XX")


def make_pegasus(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    masks = ["<mask_1>", "<mask_2>", *(f"<unk_{i}>" for i in range(2, 103))]
    return PegasusTokenizer(vocab=unigram(texts, ["<pad>", "</s>", *masks, "<unk>"]))


def make_kobart(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """BPE whose words begin with a sign for the space; its file alone describes it, no class."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.normalizer, core.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    core.train_from_iterator(texts, trainer)
    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    named = {f"{role}_token": token for role, token in roles.items()}
    return PreTrainedTokenizerFast(tokenizer_object=core, **named)


def make_bart(texts: Sequence[str]) -> PreTrainedTokenizerBase:
    return train_tokenizer(texts, 350)


KINDS: dict[str, Callable[[Sequence[str]], PreTrainedTokenizerBase]] = {
    "bart": make_bart,
    "kobart": make_kobart,
    "mbart": make_mbart,
    "pegasus": make_pegasus,
    "t5": make_t5,
}
