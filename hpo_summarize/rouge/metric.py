"""ROUGE-1, ROUGE-2 and ROUGE-L F1 as an `evaluate.Metric`."""

from __future__ import annotations

import reprlib
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from statistics import fmean
from typing import Any

import datasets
import evaluate
from rapidfuzz.distance import LCSseq

from hpo_summarize.rouge.tokenizers import (
    AUTO,
    TOKENIZERS,
    RememberingTokenizer,
    check_name,
    has_letters_beyond_ascii,
)

MEASURES = ("rouge1", "rouge2", "rougeL")


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
    words = _shared(reference, prediction)
    pairs = _shared(zip(reference, reference[1:]), zip(prediction, prediction[1:]))
    sequence = LCSseq.similarity(reference, prediction)
    return {
        "rouge1": _f1(words, n_reference, n_prediction),
        "rouge2": _f1(pairs, n_reference - 1, n_prediction - 1),
        "rougeL": _f1(sequence, n_reference, n_prediction),
    }


def _shared(reference: Iterable[Hashable], prediction: Iterable[Hashable]) -> int:
    """How many n-grams of the one text stand in the other, each counted as often as in both."""
    expected, found = Counter(reference), Counter(prediction)
    return sum(min(expected[ngram], found[ngram]) for ngram in expected.keys() & found.keys())


def _f1(shared: float, n_reference: int, n_prediction: int) -> float:
    if not shared:
        return 0.0
    precision, recall = shared / n_prediction, shared / n_reference
    return 2 * precision * recall / (precision + recall)


# One text, or several, a row.
References = Sequence[str] | Sequence[Sequence[str]]

NOTHING = "there is nothing to score: got 0 rows; pass one or more predictions and references"


def checked_rows(predictions: Any, references: Any) -> tuple[list[str], list[list[str]]]:
    """Predictions and references as lists, each row's references as a list of its own.

    Raises:
        ValueError: No rows, not as many predictions as references, or an empty list of them.
        TypeError: Something that should be a text is none.
    """
    texts = _as_list(predictions, "predictions")
    rows = _as_list(references, "references")
    if len(texts) != len(rows):
        raise ValueError(
            "there must be as many predictions as rows of references, got "
            f"{len(texts)} and {len(rows)}; pair them row by row"
        )
    if not texts:
        raise ValueError(NOTHING)
    for number, text in enumerate(texts):
        _check_text(text, f"predictions[{number}]")
    return texts, [
        _checked_references(row, f"references[{number}]") for number, row in enumerate(rows)
    ]


def _checked_references(row: Any, place: str) -> list[str]:
    texts = list(row) if _is_list(row) else [row]
    if not texts:
        raise ValueError(f"{place} must hold one or more texts, got none; leave this row out")
    for text in texts:
        _check_text(text, place)
    return texts


def _as_list(values: Any, name: str) -> list[Any]:
    if not _is_list(values):
        raise TypeError(
            f"{name} must be a list with an entry for each row, got {reprlib.repr(values)}; "
            "put a single row into a list"
        )
    return list(values)


def _is_list(values: Any) -> bool:
    # The keys of a mapping are not its texts, and a set has lost their order.
    return isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping, Set))


def _check_text(text: Any, place: str) -> None:
    if not isinstance(text, str):
        raise TypeError(
            f"{place} must be text, got {reprlib.repr(text)} ({type(text).__name__}); decode token "
            "ids to text, and leave out rows without text"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{place} must be valid Unicode text, got half a surrogate pair at character "
            f"{error.start}; read the file as UTF-8 again, or replace that character"
        ) from error


_OVER_REFERENCES = ("mean", "max")


class Rouge(evaluate.Metric):
    """ROUGE F1 of summaries in any language; without network and without files.

    The figures are those of the `rouge_score` package, which by itself keeps the letters a to z and
    the digits only: two equal Korean sentences get 0 there. Here the tokenizer fits the text:

    | tokenizer | a token is |
    | --- | --- |
    | `auto` | as in `default` where all references are in ASCII letters, else as in `unicode` |
    | `default` | what `rouge_score` takes for one, without stemming |
    | `unicode` | a run of letters and digits of any script; a character in Chinese, Thai, ... |
    | `character` | a letter or a digit with its marks |
    | `kiwi` | a Korean morpheme, a punctuation mark or a symbol, by kiwipiepy |
    | `mecab` | the same by python-mecab-ko |

    Every tokenizer compares in lower case. `kiwi` runs without its rule for hashtags
    (`Match.HASHTAG`), by which the particle behind a speaker (`#Person1#은`) would stay on it: its
    scores are not those of kiwipiepy with its default options.

    `kiwi` and `mecab` need `pip install "hpo_summarize[korean]"`. `kiwi` is loaded once a process,
    in 2.7 s, and takes as many threads as torch has at that time.

    500 Korean predictions and their references, of 150 characters each, take 0.05 s in words, 0.08
    in characters, 0.5 by mecab, 1.4 by kiwi on one thread and 0.75 on two, the first time; later,
    with the tokens of the references remembered and other predictions, about half of that.

    `auto` decides by the references of the first evaluation, never by predictions, and stays with
    it: use one object a study, and give a study one set of references. Should it have taken
    `default` and meet other letters in later references, it warns and goes over to `unicode` for
    good. Both cut ASCII text alike, so what was measured before stays comparable, but for
    predictions that held other letters, which `default` drops as `rouge_score` does.

    The Korean competition's way of scoring dialogue summaries: the prediction and three reference
    summaries are split into morphemes joined by spaces, the ROUGE F1 of the prediction with each
    of the three is taken and averaged over them, then over the rows; the final score is the sum of
    the three averages, for ROUGE-1, ROUGE-2 and ROUGE-L:

        rouge = Rouge(tokenizer="mecab", references="mean")      # or "kiwi"
        scores = rouge.compute(predictions=[...], references=[[first, second, third], ...])
        final_score = sum(scores.values())                       # 0 to 3

    Morphemes differ from one analyser, and one version of its dictionary, to the next; compare
    only figures of the same one.

    Args:
        tokenizer: A name from the table.
        references: With several references in a row, `"mean"` takes the mean of their F1, `"max"`
            for each measure the F1 with the best fitting one, as `RougeScorer.score_multi` does.

    Attributes:
        tokenizer_name: The tokenizer in use; `"auto"` until the first evaluation has decided.

    Raises:
        ValueError: There is no such tokenizer, or no such way with several references.
        ImportError: The package of the tokenizer is not installed.

    Source of the measures: C.-Y. Lin, "ROUGE: A Package for Automatic Evaluation of Summaries",
    Text Summarization Branches Out, 2004.

    >>> Rouge().compute(predictions=["미나는 역에 간다"], references=["미나는 역에 갔다"])
    {'rouge1': 0.6666666666666666, 'rouge2': 0.5, 'rougeL': 0.6666666666666666}
    """

    def __init__(self, tokenizer: str = AUTO, references: str = "mean") -> None:
        check_name(tokenizer, TOKENIZERS, "the ROUGE tokenizer")
        check_name(references, _OVER_REFERENCES, "what is taken over several references")
        # In memory: the base class would write, and lock, an Arrow file in the user's cache.
        super().__init__(keep_in_memory=True)
        self.tokenizer_name = tokenizer
        self._automatic = tokenizer == AUTO
        self._best_reference = references == "max"
        if not self._automatic:
            self._use(tokenizer)

    def compute(
        self, *, predictions: Iterable[str] | None = None, references: References | None = None
    ) -> dict[str, float]:
        """Scores rows and takes the mean over them.

        Args:
            predictions: One text a row.
            references: One text a row, or a list of one or more texts a row; the rows may have
                different numbers. Both arguments may be left out where `add` or `add_batch`
                brought the rows.

        Returns:
            F1 from 0 to 1 under `rouge1`, `rouge2` and `rougeL`. An empty text scores 0.

        Raises:
            ValueError: No rows, not as many predictions as references, or an empty list of them.
            TypeError: Something that should be a text is none.
        """
        if predictions is None and references is None and self.writer is None:
            raise ValueError(NOTHING)
        return super().compute(predictions=predictions, references=references)

    def score_rows(
        self, predictions: Iterable[str], references: References
    ) -> list[dict[str, float]]:
        """Scores each row for itself; arguments and errors are those of `compute`.

        Returns:
            For each row the F1 from 0 to 1 under `rouge1`, `rouge2` and `rougeL`.
        """
        texts, rows = checked_rows(predictions, references)
        self._settle_tokenizer(rows)
        all_references = [text for row in rows for text in row]
        self._tokenizer.remember(all_references)
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
        texts, rows = checked_rows(predictions, references)
        super().add_batch(predictions=texts, references=rows)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        scores = self.score_rows(predictions, references)
        return {name: fmean(score[name] for score in scores) for name in MEASURES}

    def _score_row(self, prediction: list[str], references: list[list[str]]) -> dict[str, float]:
        scores = [score_tokens(reference, prediction) for reference in references]
        over = max if self._best_reference else fmean
        return {name: over(score[name] for score in scores) for name in MEASURES}

    def _use(self, name: str) -> None:
        self.tokenizer_name = name
        self._tokenizer = RememberingTokenizer(name)

    def _settle_tokenizer(self, references: list[list[str]]) -> None:
        if self.tokenizer_name not in (AUTO, "default"):
            return
        foreign = any(has_letters_beyond_ascii(text) for row in references for text in row)
        if self.tokenizer_name == AUTO:
            self._use("unicode" if foreign else "default")
        elif foreign and self._automatic:
            warnings.warn(
                "the first references for ROUGE had ASCII letters only, these have others; from "
                "here on the tokenizer is 'unicode', which cuts ASCII text in the same way",
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
        # The base class would make this folder, although nothing is ever put into it.
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
