"""What the winners of the searches write, and which of them are worth comparing.

A model that has learnt little writes one text for every dialogue, and often another text scores
more in that place than its summaries do: a table of such models compares nothing.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarking.setting import texts_path
from benchmarking.summary import Record

from hpo_summarize.components import Experiment
from hpo_summarize.config.schema import Recipe
from hpo_summarize.data.splits import read_dialogues
from hpo_summarize.errors import HpoError
from hpo_summarize.generation import degenerate_note
from hpo_summarize.rouge import Rouge

# 200 texts on 100 rows with three references each take 4 s.
_N_TEXTS = 200
_N_ROWS = 100
_N_FINAL = 5
_NOTHING = "nothing can be compared: no winner is above the best constant summary"


@dataclass(frozen=True)
class Constant:
    """A text and its score.

    Attributes:
        text: The text.
        score: Mean ROUGE F1, 0 to 1, where it is the summary of every row.
    """

    text: str
    score: float


def best_constant(
    rouge: Rouge,
    measure: str,
    references: Sequence[list[str]],
    sources: Sequence[Iterable[str]],
    texts: Iterable[str] = (),
) -> Constant:
    """The text that scores best as the summary of every row.

    A seeded draw of 200 texts from each source is scored on a seeded draw of 100 rows, and the five
    best of them all, with `texts`, on all rows. The text is chosen on the rows that it is measured
    on, so its score is rather too high than too low.

    Args:
        rouge: The metric.
        measure: `"rouge1"`, `"rouge2"` or `"rougeL"`.
        references: The references of each row.
        sources: Texts to draw from, such as the references of the training split.
        texts: Further texts, all of which are tried on all rows.
    """

    def score(text: str, rows: Sequence[list[str]]) -> float:
        return fmean(row[measure] for row in rouge.score_rows([text] * len(rows), rows))

    draw, drawn = random.Random(0), list[str]()
    for source in sources:
        known = sorted(set(source))
        drawn += draw.sample(known, min(_N_TEXTS, len(known)))
    part = draw.sample(list(references), min(_N_ROWS, len(references)))
    first = sorted(drawn, key=lambda text: -score(text, part))[:_N_FINAL]
    final = [Constant(text, score(text, references)) for text in [*first, *texts]]
    return max(final, key=lambda constant: constant.score)


@dataclass(frozen=True)
class Winners:
    """The winners of a benchmark beside the best constant summary.

    Attributes:
        records: Records of all runs.
        constant: The best constant summary of the test split.
        objective: The measure that was searched for.
    """

    records: Sequence[Record]
    constant: Constant
    objective: str

    @property
    def counted(self) -> list[Record]:
        """The runs whose winner is above the best constant summary."""
        return [record for record in self.records if self._counts(record)]

    def require_one(self) -> None:
        """Checks that there is something to compare.

        Raises:
            HpoError: No winner is above the best constant summary.
        """
        if not self.counted:
            raise HpoError(f"{_NOTHING}; give the searches another model, or longer ones")

    def table(self) -> list[list[str]]:
        """A header and a row for each winner."""
        header = ["winner", f"{self.objective} on test", "best constant summary"]
        return [header + ["distinct summaries", "counted"]] + [
            [
                _name(record),
                f"{record['test'][self.objective]:.4f}",
                f"{self.constant.score:.4f}",
                "{n_distinct} of {n_rows}".format(**record["summaries"]),
                "yes" if self._counts(record) else "no",
            ]
            for record in self.records
        ]

    def notes(self) -> list[str]:
        """Which winners are not counted, what is wrong with them, and the constant summary."""
        notes = [] if self.counted else [_NOTHING]
        for record in self.records:
            if not self._counts(record):
                notes.append(
                    f"{_name(record)} is not counted: {self.objective} "
                    f"{record['test'][self.objective]:.4f} on test is not above the "
                    f"{self.constant.score:.4f} of the best constant summary"
                )
            if note := degenerate_note(record["summaries"]):
                notes.append(f"{_name(record)}: {note}")
        return [*notes, f"the best constant summary is {self.constant.text!r}"]

    def _counts(self, record: Record) -> bool:
        return record["test"][self.objective] > self.constant.score


def _name(record: Record) -> str:
    return f"{record['method']}, seed {record['seed']}"


def judge_winners(recipe: Recipe, records: Sequence[Record], output_dir: Path) -> Winners:
    """Finds the best constant summary among training references and what the winners write.

    Args:
        recipe: Recipe of the benchmark.
        records: Records of all its runs.
        output_dir: Folder with the texts of their winners.
    """
    experiment, objective = Experiment(recipe), recipe.search.objectives[0]
    test = read_dialogues(recipe.data.test or [], recipe.data)
    known = (text for row in experiment.splits[0].references for text in row)
    paths = [texts_path(output_dir, record["method"], record["seed"]) for record in records]
    written = (text for path in paths for text in json.loads(path.read_text("utf-8")).values())
    frequent = [text for record in records for text in record["summaries"]["examples"]]
    sources, references = [known, written], test.references
    constant = best_constant(experiment.rouge, objective, references, sources, frequent)
    return Winners(records, constant, objective)
