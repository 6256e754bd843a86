"""What is left of a reference that becomes token ids and then text again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from hpo_summarize.model.tokenizer import with_spaces
from hpo_summarize.rouge import MEASURES, Rouge

_SCORED_ROWS = 500  # Enough for two digits; a morphological analyser takes a second for them.
_SHOWN_FAULTS = 5
_N_EXAMPLES = 3
_TOLERATED = 0.005  # Share of the references, or of the score, that may be lost unmentioned.


@dataclass(frozen=True)
class RoundTrip:
    """What is left of references that became token ids and then text again.

    Attributes:
        rows: Number of rows; the first reference of each counts.
        changed: Rows whose reference does not come back as it was, but for white space.
        cut: Rows whose reference has more than `limit` tokens.
        limit: Most tokens of a generated summary.
        faults: Changed rows by the token or the character that does not come back as it was.
        examples: A few changed references as they were and as they come back.
        ceiling: The most that a model can score, which writes every reference as far as tokens and
            limit let it: ROUGE F1, 0 to 1, by name.
    """

    rows: int
    changed: int
    cut: int
    limit: int
    faults: dict[str, int]
    examples: list[tuple[str, str]]
    ceiling: dict[str, float]

    def note(self) -> str | None:
        """What a user should know where a perfect model scores below 1, or many texts change."""
        if max(self.changed / self.rows, 1 - min(self.ceiling.values())) < _TOLERATED:
            return None
        causes = []
        if self.changed:
            shown = ", ".join(f"{t!r} in {n}" for t, n in [*self.faults.items()][:_SHOWN_FAULTS])
            causes.append(
                f"the tokenizer changes {self.changed} of {self.rows} references"
                + (f" ({shown})" if shown else "")
            )
        if self.cut:
            causes.append(f"{self.cut} of {self.rows} have more than {self.limit} tokens")
        return f"a perfect model would score at most {self.scores()}: {' and '.join(causes)}"

    def scores(self) -> str:
        """The ceiling in words."""
        return ", ".join(f"{name} {value:.4f}" for name, value in self.ceiling.items())


def round_trip(
    references: Sequence[str],
    labels: Sequence[Sequence[int]],
    tokenizer: PreTrainedTokenizerBase,
    rouge: Rouge,
    limit: int,
) -> RoundTrip:
    """Compares references with what their token ids are decoded to.

    Args:
        references: One text a row.
        labels: Its token ids, not cut.
        tokenizer: The model's.
        rouge: Scores what comes back, of at most 500 rows that differ.
        limit: Most tokens of a generated summary.
    """
    texts = tokenizer.batch_decode(list(labels), skip_special_tokens=True)
    changed = [n for n, text in enumerate(texts) if text.split() != references[n].split()]
    cut = [n for n, row in enumerate(labels) if len(row) > limit]
    differing = sorted({*changed, *cut})
    scored = random.Random(0).sample(differing, min(_SCORED_ROWS, len(differing)))
    written = tokenizer.batch_decode([labels[n][:limit] for n in scored], skip_special_tokens=True)
    scores = rouge.score_rows(written, [references[n] for n in scored]) if scored else []
    share = len(differing) / max(len(references), 1)
    lost = {name: share * (1 - _mean(row[name] for row in scores)) for name in MEASURES}
    added = tokenizer.get_added_vocab()
    faults = Counter(f for n in changed for f in _faults(references[n], texts[n], added))
    return RoundTrip(
        len(references),
        len(changed),
        len(cut),
        limit,
        dict(faults.most_common()),
        [(references[n], texts[n].strip()) for n in changed[:_N_EXAMPLES]],
        {name: 1 - value for name, value in lost.items()},
    )


def _mean(values: Iterable[float]) -> float:
    return float(np.mean([*values] or [0.0]))


def _faults(before: str, after: str, added: Iterable[str]) -> set[str]:
    """Added tokens that are lost or lose the spaces around them, and characters that are lost."""
    before, after = " ".join(before.split()), " ".join(after.split())
    tokens = {t for t in added if t in before and with_spaces(t, before) != with_spaces(t, after)}
    for token in tokens:
        before = before.replace(token, "")
    return tokens | (set(before) - set(after))
