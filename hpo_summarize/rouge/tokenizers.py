"""How a text is cut into the tokens that ROUGE counts."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

import regex
from rouge_score.tokenizers import DefaultTokenizer, Tokenizer

Split = Callable[[str], list[str]]

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


def _join_and_split(morphemes: Iterable[str]) -> list[str]:
    # A few dictionary entries hold a space. The Korean way joins morphemes by spaces, so they part.
    return " ".join(morphemes).lower().split()


def _load_default() -> Split:
    return DefaultTokenizer(use_stemmer=False).tokenize


def _load_kiwi() -> Split:
    try:
        from kiwipiepy import Kiwi, Match
    except ImportError as error:
        raise _missing_package("kiwi", "kiwipiepy") from error
    kiwi: Any = Kiwi(num_workers=1)
    # As a hashtag, "#Person1#은" would keep its particle: "#은" and "#는" would be two words.
    match: Any = Match.ALL & ~Match.HASHTAG

    def split(text: str) -> list[str]:
        tokens = kiwi.tokenize(unicodedata.normalize("NFC", text), match_options=match)
        return _join_and_split(token.form for token in tokens)

    return split


def _load_mecab() -> Split:
    try:
        from mecab import MeCab
    except ImportError as error:
        raise _missing_package("mecab", "python-mecab-ko") from error
    mecab: Any = MeCab()

    def split(text: str) -> list[str]:
        return _join_and_split(mecab.morphs(unicodedata.normalize("NFC", text)))

    return split


def _missing_package(tokenizer: str, package: str) -> ImportError:
    return ImportError(
        f"the ROUGE tokenizer '{tokenizer}' needs the package {package}, which cannot be imported "
        'here; install it with: pip install "hpo_summarize[korean]"',
        name=package,
    )


_LOADERS: dict[str, Callable[[], Split]] = {
    "default": _load_default,
    "unicode": lambda: split_words,
    "character": lambda: split_characters,
    "kiwi": _load_kiwi,
    "mecab": _load_mecab,
}
TOKENIZERS = (AUTO, *_LOADERS)


class RememberingTokenizer(Tokenizer):
    """A tokenizer for `rouge_score` that cuts every remembered text once.

    Args:
        name: One of `TOKENIZERS` without `auto`.
        max_remembered: Most texts to remember; further ones are cut whenever they are met.

    Raises:
        ImportError: The tokenizer's package is not installed.
    """

    def __init__(self, name: str, max_remembered: int = MAX_REMEMBERED) -> None:
        self.name = name
        self.max_remembered = max_remembered
        self._split = _LOADERS[name]()
        self._remembered: dict[str, list[str]] = {}
        self._words: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # The analysers cannot be pickled; another process loads its own.
        return type(self), (self.name, self.max_remembered)

    def remember(self, texts: Iterable[str]) -> None:
        """Cuts the texts that are not known yet, as far as there is room."""
        for text in texts:
            if len(self._remembered) >= self.max_remembered:
                return
            if text not in self._remembered:
                # Equal tokens of all texts are one object: a tenth of the memory, for characters.
                once = self._words.setdefault
                self._remembered[text] = [once(token, token) for token in self._split(text)]

    def tokenize(self, text: str) -> list[str]:
        """The tokens of `text`, which the caller must not change."""
        tokens = self._remembered.get(text)
        return self._split(text) if tokens is None else tokens


def check_name(name: str, known: Iterable[str], what: str) -> None:
    """Raises a ValueError that lists the known names unless `name` is one of them."""
    names = list(known)
    if name in names:
        return
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ""
    raise ValueError(f"{what} must be one of {', '.join(names)}, got {name!r}{hint}")
