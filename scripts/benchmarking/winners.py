"""What the winners of the searches write, and which of them are worth comparing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarking.constant import Constant, best_constant
from benchmarking.setting import texts_path
from benchmarking.summary import Record

from hpo_summarize.components import Experiment
from hpo_summarize.config.schema import Recipe
from hpo_summarize.data.splits import read_dialogues
from hpo_summarize.errors import HpoError
from hpo_summarize.generation import degenerate_note


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
        return [record for record in self.records if self._score(record) > self.constant.score]

    def require_one(self) -> None:
        """Checks that there is something to compare.

        Raises:
            HpoError: No winner is above the best constant summary.
        """
        if not self.counted:
            raise HpoError(f"{self._nothing()}; give the searches another model, or longer ones")

    def table(self) -> list[list[str]]:
        """A header and a row for each winner."""
        header = ["winner", f"{self.objective} on test", "best constant summary"]
        rows = [header + ["distinct summaries", "counted"]]
        for record in self.records:
            described, is_counted = record["summaries"], self._score(record) > self.constant.score
            rows.append(
                [
                    _name(record),
                    f"{self._score(record):.4f}",
                    f"{self.constant.score:.4f}",
                    f"{described['n_distinct']} of {described['n_rows']}",
                    "yes" if is_counted else "no",
                ]
            )
        return rows

    def notes(self) -> list[str]:
        """Which winners are not counted, what is wrong with them, and the constant summary."""
        return [*self._notes()]

    def _notes(self) -> Iterator[str]:
        if not self.counted:
            yield self._nothing()
        for record in self.records:
            if (score := self._score(record)) <= self.constant.score:
                yield (
                    f"{_name(record)} is not counted: {self.objective} {score:.4f} on test is not "
                    f"above the {self.constant.score:.4f} of the best constant summary"
                )
            if note := degenerate_note(record["summaries"]):
                yield f"{_name(record)}: {note}"
        yield f"the best constant summary is {self.constant.text!r}"

    def _nothing(self) -> str:
        return "nothing can be compared: no winner is above the best constant summary"

    def _score(self, record: Record) -> float:
        return record["test"][self.objective]


def _name(record: Record) -> str:
    return f"{record['method']}, seed {record['seed']}"


def judge_winners(recipe: Recipe, records: Sequence[Record], output_dir: Path) -> Winners:
    """Finds the best constant summary among training references and what the winners write.

    A model that has learnt little often writes a text that scores more as the summary of every
    dialogue than its summaries do.

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
