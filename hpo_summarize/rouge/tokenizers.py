"""The tokenizers of ROUGE."""

from __future__ import annotations

import functools
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import regex
import torch
from rouge_score.tokenizers import DefaultTokenizer

# The tokens of each of several texts, in their order.
SplitAll = Callable[[Iterable[str]], Iterable[list[str]]]

AUTO = "auto"
MAX_CACHED = 100_000  # References of 150 characters take 130 MB as characters, less as words.

# For the first three, the script's extensions (scx): they hold what the three have in common, such
# as the long vowel sign of Japanese. Those of Thai hold an apostrophe that other languages use.
_SPACELESS_SCRIPTS = (
    r"\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}"
    r"\p{sc=Thai}\p{sc=Lao}\p{sc=Khmer}\p{sc=Myanmar}"
)
_SPACELESS_LETTER = rf"[[{_SPACELESS_SCRIPTS}]&&[\p{{L}}\p{{N}}]]"
_WORD = regex.compile(
    rf"(?V1){_SPACELESS_LETTER}\p{{M}}*|[[\p{{L}}\p{{M}}\p{{N}}]--{_SPACELESS_LETTER}]+"
)
_CHARACTER = regex.compile(r"(?=[\p{L}\p{N}])\X")
_BEYOND_ASCII = regex.compile(r"(?V1)[[\p{L}\p{M}\p{N}]--[\x00-\x7f]]")


def has_letters_beyond_ascii(text: str) -> bool:
    """Whether `text` holds a letter, mark or digit that the `default` tokenizer would drop."""
    return not text.isascii() and _BEYOND_ASCII.search(text) is not None


def split_words(text: str) -> list[str]:
    """The `unicode` tokenizer: runs of letters, marks and digits of any script, in lower case.

    In scripts that are written without spaces (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar)
    every character with its marks is a token. Everything else, `_` too, separates, so that ASCII
    text gives exactly the tokens of `rouge_score`. Text is normalised to NFC first.

    >>> split_words("Café 3시에 만나자, 駅で")
    ['café', '3시에', '만나자', '駅', 'で']
    """
    return _WORD.findall(_normalized(text))


def split_characters(text: str) -> list[str]:
    """The `character` tokenizer: every letter or digit with its marks, in lower case.

    >>> split_characters("3시에 OK!")
    ['3', '시', '에', 'o', 'k']
    """
    return _CHARACTER.findall(_normalized(text))


def _normalized(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFC", text.lower())


def _composed(text: str) -> str:
    # A null character ends a text for mecab; for kiwi it would be a symbol.
    return unicodedata.normalize("NFC", text).replace("\0", " ")


def _join_and_split(morphemes: Iterable[str]) -> list[str]:
    # A few dictionary entries hold a space. The Korean way joins morphemes by spaces, so they part.
    return " ".join(morphemes).lower().split()


def _load_kiwi() -> SplitAll:
    try:
        from kiwipiepy import Match
    except ImportError as error:
        raise _missing_package("kiwi", "kiwipiepy") from error
    kiwi, process = _kiwi(torch.get_num_threads())
    # As a hashtag, "#Person1#은" would keep its particle: "#은" and "#는" would be two words.
    match: Any = Match.ALL & ~Match.HASHTAG

    def split_all(texts: Iterable[str]) -> Iterable[list[str]]:
        composed = map(_composed, texts)
        if os.getpid() == process:
            analysed = kiwi.tokenize(composed, match_options=match)
        else:
            analysed = (kiwi.tokenize(text, match_options=match) for text in composed)
        return (_join_and_split(token.form for token in tokens) for tokens in analysed)

    return split_all


@functools.cache
def _kiwi(n_threads: int) -> tuple[Any, int]:
    """An analyser for batches of texts, and the process whose threads it uses.

    Loaded once and never freed: a fork has a copy of it without its threads, and would wait for
    them for ever, with a batch or when it collects the copy as garbage.
    """
    from kiwipiepy import Kiwi

    kiwi: Any = Kiwi(num_workers=n_threads)
    kiwi.tokenize("")  # Otherwise the first evaluation would do more than half of the loading.
    return kiwi, os.getpid()


def _load_mecab() -> SplitAll:
    try:
        from mecab import MeCab
    except ImportError as error:
        raise _missing_package("mecab", "python-mecab-ko") from error
    mecab: Any = MeCab()

    return lambda texts: (_join_and_split(mecab.morphs(_composed(text))) for text in texts)


def _missing_package(tokenizer: str, package: str) -> ImportError:
    return ImportError(
        f"the ROUGE tokenizer '{tokenizer}' needs the package {package}, which cannot be imported "
        'here; install it with: pip install "hpo_summarize[korean]"',
        name=package,
    )


_LOADERS: dict[str, Callable[[], SplitAll]] = {
    "default": lambda: functools.partial(map, DefaultTokenizer(use_stemmer=False).tokenize),
    "unicode": lambda: functools.partial(map, split_words),
    "character": lambda: functools.partial(map, split_characters),
    "kiwi": _load_kiwi,
    "mecab": _load_mecab,
}
TOKENIZERS = (AUTO, *_LOADERS)


class CachedTokenizer:
    """A tokenizer with a cache for the references, which every evaluation has.

    Args:
        name: One of `TOKENIZERS` without `auto`. `kiwi` takes as many threads as torch has when
            it is loaded (`torch.get_num_threads`), the others one.
        max_cached: Largest number of cached texts; further ones are split in every evaluation.

    Raises:
        ImportError: The tokenizer's package is not installed.
    """

    def __init__(self, name: str, max_cached: int = MAX_CACHED) -> None:
        self.name = name
        self.max_cached = max_cached
        self._split_all = _LOADERS[name]()
        self._cached: dict[str, list[str]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # The analysers cannot be pickled; another process loads its own.
        return type(self), (self.name, self.max_cached)

    def cache(self, texts: Iterable[str]) -> None:
        """Splits and caches the texts that are not cached yet, up to `max_cached`."""
        room = max(0, self.max_cached - len(self._cached))
        unknown = list(islice(self._unknown(texts), room))
        for text, tokens in zip(unknown, self._split_all(unknown)):
            # Equal tokens of all texts are one object: a tenth of the memory, for characters.
            self._cached[text] = list(map(sys.intern, tokens))

    def tokenize(self, texts: Sequence[str]) -> dict[str, list[str]]:
        """The tokens of each text, which the caller must not change; equal texts are split once."""
        unknown = list(self._unknown(texts))
        tokens = dict(zip(unknown, self._split_all(unknown)))
        return tokens | {text: self._cached[text] for text in texts if text in self._cached}

    def _unknown(self, texts: Iterable[str]) -> Iterable[str]:
        return (text for text in dict.fromkeys(texts) if text not in self._cached)
