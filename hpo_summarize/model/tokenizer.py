"""The tokenizer of a recipe's model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hpo_summarize.errors import ModelError
from hpo_summarize.model.languages import set_language
from hpo_summarize.model.source import find_place, loading_options, not_loaded
from hpo_summarize.recipe import ModelSection

# Checkpoints have spare rows of embeddings, 28 in T5 and 12 in mT5; this many are no padding.
_TOO_MANY_SPARE_ROWS = 1024


def load_tokenizer(
    section: ModelSection, special_tokens: Iterable[str] = ()
) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model, with the special tokens that it lacks added.

    They are added as ordinary whole tokens: as "special" ones they would be left out of every
    decoded summary, and so would the speakers that a summary speaks of.

    Raises:
        ModelError: There is no tokenizer at that place, it lacks the padding or the end token, or
            does not know the language.
    """
    source = section.name if section.tokenizer is None else section.tokenizer
    if source is None:
        raise ModelError(
            "model.tokenizer is not set, and a model from a configuration brings none; "
            "set it, or train one with train_tokenizer"
        )
    place = find_place("tokenizer", source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **loading_options(section, source))
    except Exception as error:
        raise not_loaded("tokenizer", source, error) from None
    _check_is_whole(tokenizer, place)
    set_language(tokenizer, section.language)
    add_tokens(tokenizer, special_tokens)
    return tokenizer


def _check_is_whole(tokenizer: PreTrainedTokenizerBase, place: str) -> None:
    """Transformers makes an empty tokenizer of a folder that has none, without a word."""
    files = set(tokenizer.vocab_files_names.values())
    if Path(place).is_dir() and files and not any((Path(place) / file).exists() for file in files):
        raise ModelError(
            f"model: the folder '{place}' holds no tokenizer (one of {', '.join(sorted(files))}); "
            "save the tokenizer there, or set model.tokenizer to where it is"
        )
    for role in ("pad_token", "eos_token"):
        if getattr(tokenizer, role) is None:
            raise ModelError(
                f"model: the tokenizer of '{place}' has no {role}, which training and decoding "
                f"need; set {role} in its tokenizer_config.json, or take another tokenizer"
            )


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, special_tokens: Iterable[str] = ()
) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer with BART's special tokens, learned from `texts`.

    The same texts in the same order give the same tokenizer.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    roles = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(roles.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    named = {f"{role}_token": token for role, token in roles.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **named)
    add_tokens(tokenizer, special_tokens)
    return tokenizer


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> None:
    """Adds the tokens that a tokenizer does not know as whole tokens yet."""
    known = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in tokens if token not in known])


def n_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many embeddings the ids of a tokenizer need; its ids may have gaps."""
    return max(tokenizer.get_vocab().values()) + 1


def check_fits(tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    """Refuses a tokenizer that was not made for a model with `rows` embeddings.

    Tokens added to a vocabulary may lie above it (the new ones do, and BART's <mask> does in some
    checkpoints); the vocabulary itself may not.

    Raises:
        ModelError: The vocabulary is larger than the model's.
    """
    added = tokenizer.get_added_vocab()
    own = 1 + max(
        (i for token, i in tokenizer.get_vocab().items() if token not in added), default=-1
    )
    if own > rows:
        raise ModelError(
            f"model: the tokenizer has {own} tokens and the model has embeddings for {rows}, so "
            "they do not belong together; set model.tokenizer to the tokenizer of this model"
        )


def spare_rows_note(tokenizer: PreTrainedTokenizerBase, rows: int) -> str | None:
    """What a user should know of a tokenizer that leaves many of `rows` embeddings without use."""
    if rows - n_rows(tokenizer) < _TOO_MANY_SPARE_ROWS:
        return None
    return (
        f"the tokenizer has {n_rows(tokenizer)} tokens and the model embeddings for {rows}; if it "
        "is not the tokenizer that the model was trained with, set model.tokenizer to that one"
    )


def new_tokens(section: ModelSection, tokenizer: PreTrainedTokenizerBase, rows: int) -> list[int]:
    """The ids that a checkpoint's own tokenizer lacks, or its model with `rows` embeddings.

    A model with spare rows has an embedding for a token that was added just now, and never used it.
    """
    if section.name is None:
        return []
    known = load_tokenizer(section).get_vocab()
    vocabulary = tokenizer.get_vocab().items()
    return sorted(i for token, i in vocabulary if token not in known or i >= rows)
