"""The ROUGE metric: values, several references and the choice of a tokenizer."""

from __future__ import annotations

import random
import string
import warnings

import pytest
from rouge_score.rouge_scorer import RougeScorer

from hpo_summarize.rouge import MEASURES, Rouge

ENGLISH = [
    ("Mina doesn't like the re-opened cafe.", "Mina does not like the reopened cafe"),
    ("It's 3:30 p.m.; bring snake_case notes!", "It is 3.30 pm, bring the snake case notes"),
    ("#Person1# pays $1,200 for flight_22", "#Person2# paid 1200 dollars for flight_22"),
    ("", "Nothing was said."),
    ("?!", "..."),
    ("Same words here", "same WORDS here"),
]
KOREAN = "미나는 내일 세 시에 도서관에서 준을 만난다"


def stock(reference: str, prediction: str) -> dict[str, float]:
    scores = RougeScorer(list(MEASURES)).score(reference, prediction)
    return {name: scores[name].fmeasure for name in MEASURES}


def same(value: float) -> dict[str, float]:
    return dict.fromkeys(MEASURES, value)


@pytest.mark.parametrize("tokenizer", ["auto", "default", "unicode"])
def test_english_text_scores_as_in_rouge_score(tokenizer: str) -> None:
    draw = random.Random(7)
    noise = [
        tuple("".join(draw.choices(string.printable + "aabb  ", k=40)) for _ in range(2))
        for _ in range(300)
    ]
    pairs = [*ENGLISH, *noise]
    predictions, references = zip(*pairs)
    rows = Rouge(tokenizer).score_rows(predictions, references)
    for (prediction, reference), row in zip(pairs, rows):
        assert row == pytest.approx(stock(reference, prediction), abs=1e-12, rel=0)


def test_compute_is_the_mean_of_the_rows_in_plain_floats() -> None:
    predictions, references = zip(*ENGLISH)
    metric = Rouge()
    rows = metric.score_rows(predictions, references)
    scores = metric.compute(predictions=predictions, references=references)
    assert list(scores) == list(MEASURES)
    for name in MEASURES:
        assert type(scores[name]) is float and type(rows[3][name]) is float
        assert scores[name] == pytest.approx(sum(row[name] for row in rows) / len(rows), abs=1e-12)


def test_identical_korean_sentences_score_one_where_rouge_score_gives_zero() -> None:
    assert stock("도서관에서 만난다", "도서관에서 만난다") == same(0.0)
    for name in ("auto", "unicode", "character"):
        assert Rouge(name).compute(predictions=[KOREAN], references=[KOREAN]) == same(1.0)


def test_different_korean_sentences_score_low_where_rouge_score_gives_one() -> None:
    prediction, reference = "3시에 만나자", "3명이 왔다"
    assert stock(reference, prediction)["rouge1"] == 1.0
    assert Rouge().compute(predictions=[prediction], references=[reference]) == same(0.0)
    by_character = Rouge("character").compute(predictions=[prediction], references=[reference])
    # One shared character, "3", of six and of five.
    assert by_character == pytest.approx({"rouge1": 2 / 11, "rouge2": 0.0, "rougeL": 2 / 11})


# "3시에 만나자" against "3시에 만나자", "5시에 만나자" and "3시에", in morphemes: of 5 and 5, 5 and 5,
# 5 and 3 tokens 5, 4, 3 are shared, and of 4 and 4, 4 and 4, 4 and 2 pairs 4, 3, 2.
THREE_REFERENCES = ["3 시 에 만나 자", "5 시 에 만나 자", "3 시 에"]
MEAN_OF_THREE = {
    "rouge1": (1 + 0.8 + 0.75) / 3,
    "rouge2": (1 + 0.75 + 2 / 3) / 3,
    "rougeL": (1 + 0.8 + 0.75) / 3,
}


def test_morphemes_joined_by_spaces_score_the_korean_way_over_three_references() -> None:
    scores = Rouge().compute(predictions=["3 시 에 만나 자"], references=[THREE_REFERENCES])
    assert scores == pytest.approx(MEAN_OF_THREE, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("name, package", [("kiwi", "kiwipiepy"), ("mecab", "mecab")])
def test_korean_analysers_score_the_korean_way_over_three_references(
    name: str, package: str
) -> None:
    pytest.importorskip(package, reason=f"the extra 'korean' is not installed ({package})")
    metric = Rouge(tokenizer=name, references="mean")
    references = [["3시에 만나자", "5시에 만나자", "3시에"]]
    scores = metric.compute(predictions=["3시에 만나자"], references=references)
    assert scores == pytest.approx(MEAN_OF_THREE, abs=1e-12)
    assert metric.compute(predictions=[KOREAN], references=[KOREAN]) == same(1.0)
    assert (
        0 < metric.compute(predictions=["3시에 만나자"], references=["3명이 왔다"])["rouge1"] < 0.3
    )


def test_max_takes_the_best_reference_for_each_measure() -> None:
    prediction = "a b c d"
    # Every word but no pair of words in the first, one pair in the second.
    references = ["d c b a", "a b x y z"]
    best = Rouge(references="max").compute(predictions=[prediction], references=[references])
    assert best["rouge1"] == 1.0
    assert best["rouge2"] == pytest.approx(2 / 7)
    stock_best = RougeScorer(list(MEASURES)).score_multi(references, prediction)
    assert best == {name: stock_best[name].fmeasure for name in MEASURES}
    mean = Rouge(references="mean").compute(predictions=[prediction], references=[references])
    assert mean["rouge1"] == pytest.approx((1 + 4 / 9) / 2)


def test_rows_may_have_different_numbers_of_references() -> None:
    rows = Rouge().score_rows(["a b", "a b", "a b"], ["a b", ["a b", "c"], ("c",)])
    assert [row["rouge1"] for row in rows] == [1.0, 0.5, 0.0]
    scores = Rouge().compute(predictions=["a b", "a b"], references=["a b", ["a b", "c"]])
    assert scores["rouge1"] == 0.75


def test_empty_texts_score_zero() -> None:
    rows = Rouge().score_rows(["", "가", "", "가"], ["가", "", "", ["", "가"]])
    assert [row["rougeL"] for row in rows] == [0.0, 0.0, 0.0, 0.5]


def test_rows_can_be_added_before_they_are_scored() -> None:
    metric = Rouge()
    metric.add(prediction="가 나", reference=["가 나", "다"])
    metric.add_batch(predictions=["가", "나"], references=["가", "다"])
    assert metric.compute()["rouge1"] == pytest.approx(1.5 / 3)
    assert metric.compute(predictions=["가"], references=["가"])["rouge1"] == 1.0


# The choice of `auto`.


def test_auto_takes_default_for_ascii_letters_and_unicode_for_others() -> None:
    for reference, expected in [
        ("Mina left “early” – 3 €", "default"),
        ("", "default"),
        ("Mina left the café", "unicode"),
        ("역에서", "unicode"),
        ("٣", "unicode"),
    ]:
        metric = Rouge()
        assert metric.tokenizer_name == "auto"
        metric.compute(predictions=["역에서"], references=[["Mina", reference]])
        assert metric.tokenizer_name == expected


def test_auto_stays_with_unicode_once_chosen() -> None:
    metric = Rouge()
    metric.score_rows(["가"], ["가"])
    assert metric.score_rows(["naïve"], ["na ve"])[0] == same(0.0)
    assert metric.tokenizer_name == "unicode"


def test_auto_warns_and_goes_over_to_unicode_when_later_references_need_it() -> None:
    metric = Rouge()
    before = metric.compute(predictions=["Mina doesn't go"], references=["Mina does not go"])
    with pytest.warns(UserWarning, match="from here on the tokenizer is 'unicode'"):
        assert metric.compute(predictions=["가 나"], references=["가 나"]) == same(1.0)
    assert metric.tokenizer_name == "unicode"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after = metric.compute(predictions=["Mina doesn't go"], references=["Mina does not go"])
    assert after == before


def test_default_asked_for_by_name_stays_and_warns_that_it_drops_letters() -> None:
    metric = Rouge("default")
    with pytest.warns(UserWarning, match="'default' drops every letter but a to z"):
        assert metric.compute(predictions=["가 나"], references=["가 나"]) == same(0.0)
    assert metric.tokenizer_name == "default"
