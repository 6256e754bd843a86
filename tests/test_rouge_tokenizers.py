"""How the ROUGE tokenizers cut texts, and what happens where one cannot be had."""

from __future__ import annotations

import random
import sys
import unicodedata
from collections.abc import Callable

import pytest
from rouge_score.tokenizers import DefaultTokenizer

from hpo_summarize.rouge import TOKENIZERS, Rouge
from hpo_summarize.rouge.tokenizers import (
    CachedTokenizer,
    split_characters,
    split_words,
)

ANALYSERS = [("kiwi", "kiwipiepy"), ("mecab", "mecab")]


def tokens(name: str, text: str) -> list[str]:
    return CachedTokenizer(name).tokenize([text])[text]


def test_unicode_cuts_every_ascii_text_as_rouge_score_does() -> None:
    draw = random.Random(3)
    everything = "".join(chr(code) for code in range(128))
    texts = [everything, *("".join(draw.choices(everything, k=30)) for _ in range(500))]
    for text in texts:
        assert split_words(text) == DefaultTokenizer().tokenize(text) == tokens("default", text)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("#Person1#은 don't a_b", ["person1", "은", "don", "t", "a", "b"]),
        ("3시에 만나자, 응?", ["3시에", "만나자", "응"]),
        ("ÉCOLE l’été Straße", ["école", "l", "été", "straße"]),
        ("Привет, мир", ["привет", "мир"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("עִבְרִית ٣٤", ["עִבְרִית", "٣٤"]),
        ("東京2024年", ["東", "京", "2024", "年"]),
        ("コーヒーabc", ["コ", "ー", "ヒ", "ー", "abc"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("ខ្មែរ ລາວ", ["ខ្", "មែ", "រ", "ລ", "າ", "ວ"]),
        ("မြန်မာ", ["မြ", "န်", "မာ"]),
        ("!? _ – 😀", []),
    ],
)
def test_unicode_keeps_the_letters_of_every_script(text: str, expected: list[str]) -> None:
    assert split_words(text) == expected


@pytest.mark.parametrize("split", [split_words, split_characters])
def test_composed_and_decomposed_text_give_the_same_tokens(
    split: Callable[[str], list[str]],
) -> None:
    text = "민아는 café에 Ångström"
    decomposed = unicodedata.normalize("NFD", text)
    assert decomposed != text
    assert split(decomposed) == split(text)


def test_character_takes_letters_and_digits_with_their_marks() -> None:
    assert split_characters("3시 OK! 😀 _x\u0301_ ที่") == ["3", "시", "o", "k", "x\u0301", "ที่"]


def test_no_letter_or_digit_of_unicode_is_dropped() -> None:
    # Old ones only: Python and `regex` may know different versions of Unicode.
    tables = (unicodedata, unicodedata.ucd_3_2_0)
    characters = [
        character
        for character in map(chr, range(0x80, 0x30000))
        if all(table.category(character)[0] in "LN" for table in tables)
    ]
    assert len(characters) > 80_000
    dropped = [
        character
        for character in characters
        if not split_words(character) or not split_characters(character)
    ]
    assert dropped == []


@pytest.mark.parametrize(
    "name, package, expected",
    [
        ("kiwi", "kiwipiepy", ["3", "명", "이", "오", "었", "다", "."]),
        ("mecab", "mecab", ["3", "명", "이", "왔", "다", "."]),
    ],
)
def test_korean_analysers_give_morphemes(name: str, package: str, expected: list[str]) -> None:
    pytest.importorskip(package, reason=f"the extra 'korean' is not installed ({package})")
    text, speaker = "3명이 왔다.", "#Person1#은 3시에"
    decomposed = unicodedata.normalize("NFD", text)
    found = CachedTokenizer(name).tokenize([text, decomposed, "", speaker])
    assert found[text] == found[decomposed] == expected
    assert found[""] == []
    # The particle stands apart from the placeholder, which is no hashtag.
    assert found[speaker][:5] == ["#", "person", "1", "#", "은"]


@pytest.mark.parametrize("name, package", [*ANALYSERS, ("unicode", "regex")])
def test_a_null_character_separates_and_hides_nothing(name: str, package: str) -> None:
    # Byte-level models can write one; mecab takes it for the end of the text.
    pytest.importorskip(package, reason=f"the extra 'korean' is not installed ({package})")
    assert tokens(name, "역에\x00갔다\x00") == tokens(name, "역에 갔다") != tokens(name, "역에")


@pytest.mark.parametrize(
    "name, module, package",
    [("kiwi", "kiwipiepy", "kiwipiepy"), ("mecab", "mecab", "python-mecab-ko")],
)
def test_missing_analyser_is_named_with_the_command_that_installs_it(
    name: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    wanted = rf'\'{name}\' needs the package {package}.*pip install "hpo_summarize\[korean\]"'
    with pytest.raises(ImportError, match=wanted):
        Rouge(tokenizer=name)


def test_unknown_tokenizer_is_refused_with_the_names() -> None:
    wanted = f"one of {', '.join(TOKENIZERS)}, got 'unicod'"
    with pytest.raises(ValueError, match=wanted):
        Rouge(tokenizer="unicod")
    with pytest.raises(ValueError, match="got None$"):
        Rouge(tokenizer=None)  # type: ignore[arg-type]


def test_texts_beyond_the_limit_are_cut_but_not_cached() -> None:
    tokenizer = CachedTokenizer("unicode", max_cached=1)
    texts = ["가 나", "다 라"]
    tokenizer.cache(texts)
    tokenizer.cache(["마"])
    first, second = tokenizer.tokenize(texts), tokenizer.tokenize(texts)
    assert first == second == {"가 나": ["가", "나"], "다 라": ["다", "라"]}
    assert first["가 나"] is second["가 나"]
    assert first["다 라"] is not second["다 라"]
