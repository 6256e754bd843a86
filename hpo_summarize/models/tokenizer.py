"""The tokenizer of a recipe's model."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers.pre_tokenizers import Metaspace
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from hpo_summarize.config.schema import ModelSection
from hpo_summarize.errors import ModelError, did_you_mean
from hpo_summarize.models.config import find_place, loading_options, not_loaded
from hpo_summarize.models.families import language_codes

# Checkpoints have spare rows of embeddings, 28 in T5 and 12 in mT5; this many are no padding.
_TOO_MANY_SPARE_ROWS = 1024


def load_tokenizer(
    section: ModelSection, special_tokens: Iterable[str] = ()
) -> PreTrainedTokenizerBase:
    """The tokenizer of a recipe's model, with the recipe's special tokens added (`add_tokens`).

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
    """Refuses the empty tokenizer that transformers 5 makes of a folder that has none."""
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


def set_language(tokenizer: PreTrainedTokenizerBase, language: str | None) -> None:
    """Sets the language that a tokenizer marks dialogues and summaries with, in place.

    Args:
        tokenizer: The model's.
        language: A code that the tokenizer knows, such as `ko_KR`. None: its source language.

    Raises:
        ModelError: It does not know the language, or knows none at all.
    """
    codes = language_codes(tokenizer)
    if language is not None and language not in codes:
        raise ModelError(
            f"model.language must be one of the languages of the tokenizer "
            f"({', '.join(codes) or 'it has none'}), got {language!r}"
            f"{did_you_mean(language, codes, 'leave it out')}"
        )
    if codes:
        marked: Any = tokenizer
        marked.src_lang = marked.tgt_lang = language or marked.src_lang


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
    """Adds the tokens that a tokenizer does not know as whole tokens yet, in place.

    They become ordinary tokens: `skip_special_tokens` drops special ones from decoded text.

    Text around an added token is split into pieces by itself. Sentencepiece tokenizers (T5, mBART,
    Pegasus) drop the space before it and begin each part with a space, so that "met #Person1#, at"
    is decoded as "met#Person1# , at" whatever the flags of the token are:
    https://github.com/huggingface/transformers/issues/24743. Where `Metaspace` can be told to begin
    the text alone with a space, this is done. Otherwise nothing is added if the tokenizer gives
    these words back as they were when it splits them into pieces.
    """
    known = tokenizer.get_vocab()
    missing = [token for token in tokens if token not in known]
    if not missing:
        return
    trial = copy.deepcopy(tokenizer)  # A token cannot be taken out again.
    trial.add_tokens(missing)
    if not _keeps_spaces(trial, missing[0]):
        if _begin_text_alone(trial) and _keeps_spaces(trial, missing[0]):
            _begin_text_alone(tokenizer)
        elif _keeps_spaces(tokenizer, missing[0]):
            return
    tokenizer.add_tokens(missing)


def _keeps_spaces(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    text = f"a {token}, {token} a"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return with_spaces(token, str(tokenizer.decode(ids))) == with_spaces(token, text)


def with_spaces(token: str, text: str) -> list[str]:
    """Every occurrence of a token in a text, with the space before it and the one after it."""
    return re.findall(rf"\s?{re.escape(token)}\s?", text)


def _begin_text_alone(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Lets `Metaspace` put a space before a text, and not before what follows an added token.

    Returns:
        Whether it can be done. Classes for one model family make their pre-tokenizer anew when they
        are loaded, and would forget it.
    """
    if type(tokenizer) is not PreTrainedTokenizerFast:
        return False
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    if not isinstance(pre_tokenizer, Metaspace):
        return False
    pre_tokenizer.prepend_scheme = "first"
    return True


def pieces_note(tokenizer: PreTrainedTokenizerBase, tokens: Iterable[str]) -> str | None:
    """What a user should know of tokens that `add_tokens` has not added."""
    known = tokenizer.get_vocab()
    if not (absent := [token for token in tokens if token not in known]):
        return None
    return (
        f"data.special_tokens: {', '.join(absent)} stay split into pieces, since this tokenizer "
        "would lose the spaces around an added token"
    )


def keep_in_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]
) -> PreTrainedTokenizerBase:
    """The tokenizer with the special tokens that occur in texts as ordinary ones of the same ids.

    Checkpoints have speakers such as `#Person1#` as special tokens, and `skip_special_tokens` would
    drop them from every summary. Tokens with a role (padding, end, unknown, ...), languages, and
    what the tokenizer itself puts around a text stay special, and so do all that occur in no text.

    Args:
        tokenizer: Is not changed.
        texts: What is to be decoded, the references for example.

    Returns:
        A changed copy, or `tokenizer` itself where there is nothing to change.
    """
    around = tokenizer("")["input_ids"] + tokenizer(text_target="")["input_ids"]
    fixed = {*tokenizer.special_tokens_map.values(), *language_codes(tokenizer)}
    fixed.update(tokenizer.convert_ids_to_tokens(around))
    added = tokenizer.added_tokens_decoder.values()
    candidates = [token for token in added if token.special and token.content not in fixed]
    whole = "\n".join(texts) if candidates else ""
    written = {token.content: token for token in candidates if token.content in whole}
    if not written:
        return tokenizer
    # The backend never takes a token out of its set of special ones; a copy is made without it.
    changed = copy.deepcopy(tokenizer)
    changed.add_tokens([_as_ordinary(token) for token in written.values()])
    rest = [token for token in changed.extra_special_tokens if str(token) not in written]
    changed.extra_special_tokens = rest
    return copy.deepcopy(changed)


def _as_ordinary(token: AddedToken) -> AddedToken:
    names = ("single_word", "lstrip", "rstrip", "normalized")
    flags = {name: getattr(token, name) for name in names}
    return AddedToken(token.content, special=False, **flags)


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
