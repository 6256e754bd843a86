"""ROUGE-1, ROUGE-2 and ROUGE-L F1 as an `evaluate.Metric`."""

from __future__ import annotations

import reprlib
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from statistics import fmean
from typing import Any

import datasets
import evaluate
from rapidfuzz.distance import LCSseq

from hpo_summarize.rouge.tokenizers import (
    AUTO,
    TOKENIZERS,
    CachedTokenizer,
    has_letters_beyond_ascii,
)

MEASURES = ("rouge1", "rouge2", "rougeL")
_OVER_REFERENCES: dict[str, Callable[[list[float]], float]] = {"mean": fmean, "max": max}

# One text, or several, a row.
References = Sequence[str] | Sequence[Sequence[str]]


def score_tokens(reference: Sequence[str], prediction: Sequence[str]) -> dict[str, float]:
    """F1 from 0 to 1 under each of `MEASURES`; 0 where a text has no tokens.

    The same numbers as those of `rouge_score`, whose table for the longest common subsequence is
    filled in Python: that took most of the time of an evaluation in characters or morphemes. Here
    rapidfuzz finds its length (bit-parallel; H. Hyyro, "Bit-Parallel LCS-length Computation
    Revisited", AWOCA 2004).

    >>> score_tokens(["a", "b", "c"], ["a", "c"])
    {'rouge1': 0.8, 'rouge2': 0.0, 'rougeL': 0.8}
    """
    n_reference, n_prediction = len(reference), len(prediction)
    words = _overlap(reference, prediction)
    pairs = _overlap(zip(reference, reference[1:]), zip(prediction, prediction[1:]))
    sequence = LCSseq.similarity(reference, prediction)
    return {
        "rouge1": _f1(words, n_reference, n_prediction),
        "rouge2": _f1(pairs, n_reference - 1, n_prediction - 1),
        "rougeL": _f1(sequence, n_reference, n_prediction),
    }


def _overlap(reference: Iterable[Hashable], prediction: Iterable[Hashable]) -> int:
    """How many n-grams both texts have, each counted as often as both have it."""
    return (Counter(reference) & Counter(prediction)).total()


def _f1(shared: float, n_reference: int, n_prediction: int) -> float:
    if not shared:
        return 0.0
    precision, recall = shared / n_prediction, shared / n_reference
    return 2 * precision * recall / (precision + recall)


class Rouge(evaluate.Metric):
    """ROUGE F1 of summaries in any language; without network and without files.

    The figures are those of the `rouge_score` package, which by itself keeps the letters a to z and
    the digits only: two equal Korean sentences get 0 there. Here the tokenizer fits the text:

    | tokenizer | a token is |
    | --- | --- |
    | `auto` | as in `default` where all references are in ASCII letters, else as in `unicode` |
    | `default` | that of `rouge_score`, without stemming |
    | `unicode` | a run of letters and digits of any script; a character in Chinese, Thai, ... |
    | `character` | a letter or a digit with its marks |
    | `kiwi` | a Korean morpheme, a punctuation mark or a symbol, by kiwipiepy |
    | `mecab` | the same by python-mecab-ko |

    Every tokenizer compares in lower case. `kiwi` runs without its rule for hashtags
    (`Match.HASHTAG`), which would leave the particle behind a speaker (`#Person1#은`) on it: its
    scores are not those of kiwipiepy with its default options. `kiwi` and `mecab` need
    `pip install "hpo_summarize[korean]"`; `kiwi` is loaded once a process, in 2.7 s, with as many
    threads as torch has at that time.

    500 Korean predictions and their references, of 150 characters each, take 0.05 s in words, 0.08
    in characters, 0.5 by mecab, 1.4 by kiwi on one thread and 0.75 on two; later, with the tokens
    of the references cached, about half of that.

    `auto` decides by the references of the first evaluation, never by predictions, and keeps its
    choice: use one object a study, and give a study one set of references. If it took `default` and
    later references have other letters, it warns and changes to `unicode` for good. Both split
    ASCII text alike, so earlier scores stay comparable, except for predictions with other letters,
    which `default` drops as `rouge_score` does.

    The Korean competition's way of scoring dialogue summaries: the prediction and three reference
    summaries are split into morphemes joined by spaces, the ROUGE F1 of the prediction with each
    of the three is averaged over them, then over the rows; the final score is the sum of the three
    averages, for ROUGE-1, ROUGE-2 and ROUGE-L:

        rouge = Rouge(tokenizer="mecab", references="mean")      # or "kiwi"
        scores = rouge.compute(predictions=[...], references=[[first, second, third], ...])
        final_score = sum(scores.values())                       # 0 to 3

    Morphemes differ between analysers and between versions of their dictionaries; compare only
    figures of the same one.

    Args:
        tokenizer: A name from the table.
        references: With several references in a row, `"mean"` takes the mean of their F1, `"max"`
            for each measure the highest F1, as `RougeScorer.score_multi` does.

    Attributes:
        tokenizer_name: The tokenizer in use; `"auto"` until the first evaluation.

    Raises:
        ValueError: The tokenizer or the way with several references is unknown.
        ImportError: The package of the tokenizer is not installed.

    Source of the measures: C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries",
    Text Summarization Branches Out, 2004.

    >>> Rouge().compute(predictions=["미나는 역에 간다"], references=["미나는 역에 갔다"])
    {'rouge1': 0.6666666666666666, 'rouge2': 0.5, 'rougeL': 0.6666666666666666}
    """

    def __init__(self, tokenizer: str = AUTO, references: str = "mean") -> None:
        _check_name("tokenizer", tokenizer, TOKENIZERS)
        _check_name("references", references, _OVER_REFERENCES)
        # In memory: the base class would write, and lock, an Arrow file in the user's cache.
        super().__init__(keep_in_memory=True)
        self._automatic = tokenizer == AUTO
        self._over_references = _OVER_REFERENCES[references]
        self._use(tokenizer)

    def compute(
        self, *, predictions: Iterable[str] | None = None, references: References | None = None
    ) -> dict[str, float]:
        """Scores rows and takes the mean over them.

        Args:
            predictions: One text a row.
            references: One text a row, or a list of one or more texts a row; the rows may have
                different numbers. Both arguments may be left out after `add` or `add_batch`.

        Returns:
            F1 from 0 to 1 under `rouge1`, `rouge2` and `rougeL`. An empty text scores 0.

        Raises:
            ValueError: No rows, not as many predictions as references, or an empty list of them.
            TypeError: Something that should be a text is not.
        """
        if predictions is None and references is None and self.writer is None:
            predictions, references = [], []  # The base class would raise a bare AssertionError.
        return super().compute(predictions=predictions, references=references)

    def score_rows(
        self, predictions: Iterable[str], references: References
    ) -> list[dict[str, float]]:
        """Scores each row separately; arguments and errors are those of `compute`.

        Returns:
            For each row the F1 from 0 to 1 under `rouge1`, `rouge2` and `rougeL`.
        """
        texts, rows = _checked_rows(predictions, references)
        self._choose_tokenizer(rows)
        all_references = [text for row in rows for text in row]
        self._tokenizer.cache(all_references)
        tokens = self._tokenizer.tokenize([*texts, *all_references])
        return [
            self._score_row(tokens[text], [tokens[reference] for reference in row])
            for text, row in zip(texts, rows)
        ]

    def add(self, *, prediction: str, reference: str | Sequence[str]) -> None:
        """Adds one row to those that the next `compute` scores."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions: Iterable[str], references: References) -> None:
        """Adds rows to those that the next `compute` scores; errors are those of `compute`."""
        # Checked here: a row that fails inside the base class leaves those before it behind.
        texts, rows = _checked_rows(predictions, references)
        super().add_batch(predictions=texts, references=rows)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        scores = self.score_rows(predictions, references)
        return {name: fmean(score[name] for score in scores) for name in MEASURES}

    def _score_row(self, prediction: list[str], references: list[list[str]]) -> dict[str, float]:
        scores = [score_tokens(reference, prediction) for reference in references]
        return {name: self._over_references([s[name] for s in scores]) for name in MEASURES}

    def _use(self, name: str) -> None:
        self.tokenizer_name = name
        if name != AUTO:
            self._tokenizer = CachedTokenizer(name)

    def _choose_tokenizer(self, references: list[list[str]]) -> None:
        if self.tokenizer_name not in (AUTO, "default"):
            return
        foreign = any(has_letters_beyond_ascii(text) for row in references for text in row)
        if self.tokenizer_name == AUTO:
            self._use("unicode" if foreign else "default")
        elif foreign and self._automatic:
            warnings.warn(
                "the first references for ROUGE had ASCII letters only, these have others; from "
                "here on the tokenizer is 'unicode', which splits ASCII text in the same way",
                stacklevel=3,
            )
            self._use("unicode")
        elif foreign:
            warnings.warn(
                "the ROUGE tokenizer 'default' drops every letter but a to z, and these references "
                "have others; use 'auto' or 'unicode' to count them",
                stacklevel=3,
            )

    def _build_data_dir(self) -> str:
        # The base class would create this folder, although nothing is ever written into it.
        return self._data_dir_root

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="ROUGE-1, ROUGE-2 and ROUGE-L F1 for any language",
            citation="Lin, 2004, https://aclanthology.org/W04-1013",
            inputs_description="",
            features=datasets.Features(
                {"predictions": text, "references": datasets.Sequence(text)}
            ),
        )


def _check_name(argument: str, name: str, known: Iterable[str]) -> None:
    if name not in list(known):
        raise ValueError(f"{argument} of Rouge must be one of {', '.join(known)}, got {name!r}")


def _checked_rows(predictions: Any, references: Any) -> tuple[list[str], list[list[str]]]:
    """Predictions and references as lists, each row's references as a list of its own."""
    for name, values in (("predictions", predictions), ("references", references)):
        if not _is_list(values):
            raise TypeError(
                f"{name} must be a list with an entry for each row, got {reprlib.repr(values)}; "
                "put a single row into a list"
            )
    texts = list(predictions)
    rows = [list(row) if _is_list(row) else [row] for row in references]
    if len(texts) != len(rows):
        raise ValueError(
            "there must be as many predictions as rows of references, got "
            f"{len(texts)} and {len(rows)}; pair them row by row"
        )
    if not texts:
        raise ValueError("there is nothing to score: got 0 rows; pass one or more")
    for number, (text, row) in enumerate(zip(texts, rows)):
        if not row:
            raise ValueError(f"references[{number}] must hold one or more texts; drop this row")
        _check_text(text, f"predictions[{number}]")
        for reference in row:
            _check_text(reference, f"references[{number}]")
    return texts, rows


def _is_list(values: Any) -> bool:
    # The keys of a mapping are not its texts, and a set has lost their order.
    return isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping, Set))


def _check_text(text: Any, place: str) -> None:
    if not isinstance(text, str):
        raise TypeError(
            f"{place} must be text, got {reprlib.repr(text)} ({type(text).__name__}); decode token "
            "ids to text, and drop rows without text"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} must be valid Unicode text, got half a surrogate pair at character "
            f"{error.start}; read the file as UTF-8 again, or replace that character"
        ) from error
