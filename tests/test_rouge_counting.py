"""The counting of ROUGE: the figures of `rouge_score`, in a fraction of its time."""

from __future__ import annotations

import random
import time

import pytest
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer

from hpo_summarize.rouge import MEASURES, Rouge, tokenizers
from hpo_summarize.rouge.metric import score_tokens


class Spaces(Tokenizer):
    """Cuts at spaces and nothing else."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def test_lists_of_tokens_score_as_in_rouge_score() -> None:
    draw, stock = random.Random(3), RougeScorer(list(MEASURES), tokenizer=Spaces())
    for _ in range(1000):
        words = draw.choice([["a", "b"], ["역", "에", "3", "간다"], [f"w{n}" for n in range(60)]])
        one, two = (draw.choices(words, k=draw.randint(0, 40)) for _ in range(2))
        expected = stock.score(" ".join(one), " ".join(two))
        found = score_tokens(one, two)
        for name in MEASURES:
            assert found[name] == pytest.approx(expected[name].fmeasure, abs=1e-12, rel=0)


def test_a_token_is_compared_as_a_whole() -> None:
    assert score_tokens(["ab", "c"], ["a", "bc"]) == dict.fromkeys(MEASURES, 0.0)


def korean(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    words = ["".join(chr(0xAC00 + draw.randrange(11172)) for _ in range(3)) for _ in range(50)]
    return [" ".join(draw.choices(words, k=38))[:150] for _ in range(count)]


@pytest.mark.parametrize("tokenizer", ["unicode", "character"])
def test_500_korean_pairs_take_less_than_a_second(tokenizer: str) -> None:
    metric, predictions, references = Rouge(tokenizer), korean(500, 1), korean(500, 2)
    start = time.process_time()
    metric.compute(predictions=predictions, references=references)
    assert time.process_time() - start < 1.0


def test_tens_of_thousands_of_references_are_cut_once_for_all_evaluations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut: list[str] = []
    split_words = tokenizers.split_words

    def count(text: str) -> list[str]:
        cut.append(text)
        return split_words(text)

    monkeypatch.setattr(tokenizers, "split_words", count)
    metric = Rouge("unicode")
    references = [[f"{row} 가", f"{row} 나", f"{row} 다"] for row in range(8000)]
    for _ in range(2):
        metric.score_rows([f"{row} 라" for row in range(8000)], references)
    assert len(cut) == 24_000 + 2 * 8000  # And the predictions, which are not cached.
