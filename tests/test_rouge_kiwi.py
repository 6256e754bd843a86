"""The `kiwi` tokenizer: kiwi's own morphemes, in batches, with the threads of the process."""

from __future__ import annotations

import csv
import dataclasses
import gc
import multiprocessing
import random
import time
import unicodedata
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from hpo_summarize.rouge import Rouge
from hpo_summarize.rouge.tokenizers import CachedTokenizer

kiwipiepy = pytest.importorskip("kiwipiepy", reason="the extra 'korean' is not installed")

CORPUS = Path(__file__).parents[1] / "recipes" / "quickstart" / "validation.csv"


def korean_texts() -> list[str]:
    """Dialogues, their summaries, and longer texts of several summaries; speakers have names."""
    with CORPUS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:40]
    summaries = [row["summary"] for row in rows]
    draw = random.Random(5)
    longer = [" ".join(draw.choices(summaries, k=count)) for count in (3, 6, 12) for _ in range(9)]
    texts = [*summaries, *(row["dialogue"] for row in rows), *longer]
    return [text.replace("#Person1#", "민아").replace("#Person2#", "준") for text in texts]


@dataclasses.dataclass(frozen=True)
class Loaded:
    metric: Rouge
    tokenizer: CachedTokenizer
    n_threads: int  # That loading began.
    seconds: float  # Of the processor.


def load(n_threads: int) -> Loaded:
    """The metric of a process that may use so many threads; no other test takes these numbers."""
    usual = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        before, start = psutil.Process().num_threads(), time.process_time()
        metric = Rouge("kiwi")
        seconds = time.process_time() - start
        n_threads = psutil.Process().num_threads() - before
        return Loaded(metric, CachedTokenizer("kiwi"), n_threads, seconds)
    finally:
        torch.set_num_threads(usual)


@pytest.fixture(scope="module")
def two() -> Loaded:
    return load(2)


@pytest.mark.slow
def test_batches_give_the_morphemes_of_kiwi_by_default(two: Loaded) -> None:
    kiwi: Any = kiwipiepy.Kiwi()
    texts = korean_texts()
    by_default = {text: [token.form for token in kiwi.tokenize(text)] for text in texts}
    expected = {text: " ".join(forms).lower().split() for text, forms in by_default.items()}
    assert sum(len(tokens) for tokens in expected.values()) > 5_000
    assert two.tokenizer.tokenize(texts) == expected
    decomposed = [unicodedata.normalize("NFD", text) for text in texts]
    assert list(two.tokenizer.tokenize(decomposed).values()) == list(expected.values())


@pytest.mark.slow
def test_loading_takes_the_threads_of_torch_and_puts_nothing_off(two: Loaded) -> None:
    three = load(3)
    assert (two.n_threads, three.n_threads) == (2, 3)
    start = time.process_time()
    three.tokenizer.tokenize(["3시에 만나자"])
    # The analyser puts off more than half of its loading to the first text, unless it is told.
    assert time.process_time() - start < 0.2 * three.seconds
    assert load(3).seconds < 0.2 * three.seconds


def test_a_forked_process_scores_as_its_parent(two: Loaded) -> None:
    # It has a copy of the analyser, and none of the analyser's threads.
    predictions, references = ["3시에 만나자", "역에 갔다"], ["3시에 만난다", "역에 간다"]
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def score() -> None:
        gc.collect()
        theirs.send(two.metric.compute(predictions=predictions, references=references))

    load(2)
    child = context.Process(target=score)
    child.start()
    try:
        assert ours.poll(30), "the forked process came to no end"
        assert ours.recv() == two.metric.compute(predictions=predictions, references=references)
    finally:
        child.kill()
        child.join()


def test_pairs_take_little_more_than_their_morphemes_and_equal_ones_far_less(two: Loaded) -> None:
    draw, texts = random.Random(6), korean_texts()
    cut = [" ".join(draw.choices(texts, k=4))[:150] for _ in range(200)]
    predictions, references = cut[:100], cut[100:]
    start = time.process_time()
    two.tokenizer.tokenize(cut)
    analysed = time.process_time()
    two.metric.compute(predictions=predictions, references=references)
    scored = time.process_time()
    # Like those of a model that has learnt nothing yet: one text, and references that are known.
    two.metric.compute(predictions=predictions[:1] * 100, references=references)
    repeated = time.process_time()
    assert scored - analysed < 2 * (analysed - start)
    assert repeated - scored < 0.4 * (scored - analysed)
