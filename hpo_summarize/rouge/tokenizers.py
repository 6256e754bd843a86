"""How a text is cut into the tokens that ROUGE counts."""

from __future__ import annotations

import difflib
import functools
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import regex
import torch
from rouge_score.tokenizers import DefaultTokenizer

Split = Callable[[str], list[str]]
# The tokens of each of several texts, in their order.
SplitAll = Callable[[Iterable[str]], Iterable[list[str]]]

AUTO = "auto"
MAX_REMEMBERED = 100_000  # References of 150 characters take 130 MB as characters, less as words.

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
    text gives exactly the tokens of `rouge_score`. Text is brought to Unicode's form NFC first.

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


def _one_by_one(split: Split) -> SplitAll:
    return functools.partial(map, split)


def _load_default() -> SplitAll:
    return _one_by_one(DefaultTokenizer(use_stemmer=False).tokenize)


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

    Loaded once, and never given up: a fork has a copy of it without its threads, and would wait
    for them for ever, be it with a batch or when it collects the copy as garbage.
    """
    from kiwipiepy import Kiwi

    kiwi: Any = Kiwi(num_workers=n_threads)
    kiwi.tokenize("")  # Else more than half of the loading would fall into the first evaluation.
    return kiwi, os.getpid()


def _load_mecab() -> SplitAll:
    try:
        from mecab import MeCab
    except ImportError as error:
        raise _missing_package("mecab", "python-mecab-ko") from error
    mecab: Any = MeCab()

    def split(text: str) -> list[str]:
        return _join_and_split(mecab.morphs(_composed(text)))

    return _one_by_one(split)


def _missing_package(tokenizer: str, package: str) -> ImportError:
    return ImportError(
        f"the ROUGE tokenizer '{tokenizer}' needs the package {package}, which cannot be imported "
        'here; install it with: pip install "hpo_summarize[korean]"',
        name=package,
    )


_LOADERS: dict[str, Callable[[], SplitAll]] = {
    "default": _load_default,
    "unicode": lambda: _one_by_one(split_words),
    "character": lambda: _one_by_one(split_characters),
    "kiwi": _load_kiwi,
    "mecab": _load_mecab,
}
TOKENIZERS = (AUTO, *_LOADERS)


class RememberingTokenizer:
    """A tokenizer that cuts every remembered text once.

    Args:
        name: One of `TOKENIZERS` without `auto`. `kiwi` takes as many threads as torch has when
            it is loaded (`torch.get_num_threads`), the others one.
        max_remembered: Most texts to remember; further ones are cut whenever they are met.

    Raises:
        ImportError: The tokenizer's package is not installed.
    """

    def __init__(self, name: str, max_remembered: int = MAX_REMEMBERED) -> None:
        self.name = name
        self.max_remembered = max_remembered
        self._split_all = _LOADERS[name]()
        self._remembered: dict[str, list[str]] = {}
        self._words: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # The analysers cannot be pickled; another process loads its own.
        return type(self), (self.name, self.max_remembered)

    def remember(self, texts: Iterable[str]) -> None:
        """Cuts the texts that are not known yet, as far as there is room."""
        room = max(0, self.max_remembered - len(self._remembered))
        unknown = list(islice(self._unknown(texts), room))
        # Equal tokens of all texts are one object: a tenth of the memory, for characters.
        once = self._words.setdefault
        for text, tokens in zip(unknown, self._split_all(unknown)):
            self._remembered[text] = [once(token, token) for token in tokens]

    def tokenize(self, texts: Sequence[str]) -> dict[str, list[str]]:
        """The tokens of each text, which the caller must not change; equal texts are cut once."""
        unknown = list(self._unknown(texts))
        tokens = dict(zip(unknown, self._split_all(unknown)))
        known = {text: self._remembered[text] for text in texts if text in self._remembered}
        return tokens | known

    def _unknown(self, texts: Iterable[str]) -> Iterable[str]:
        return (text for text in dict.fromkeys(texts) if text not in self._remembered)


def check_name(name: str, known: Iterable[str], what: str) -> None:
    """Raises a ValueError that lists the known names unless `name` is one of them."""
    names = list(known)
    if name in names:
        return
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r}{hint}")
