"""From a file of dialogues to a file of summaries, by one process or several."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import PartialState

from hpo_summarize.components import Experiment
from hpo_summarize.config.schema import Recipe
from hpo_summarize.data.dialogues import Dialogues, listed
from hpo_summarize.data.splits import read_every_row
from hpo_summarize.errors import DataError, HpoError, stopping_at_storage_failure
from hpo_summarize.final_model.kept import load_kept
from hpo_summarize.final_model.select import BEST_PARAMS, choose_candidates
from hpo_summarize.generation import Summaries
from hpo_summarize.io import claim, discard, make_writable, mark_of, write_text
from hpo_summarize.launch.processes import on_all, on_main
from hpo_summarize.reporting.progress import show_batches
from hpo_summarize.summarizer import Summarizer, load_summarizer

BEST = "best"
MODEL = "model"  # Name of the final model's folder in the output folder.
_ID_COLUMN = "fname"  # In a submission; the data's own name for it where it has one.
_CHUNK = 2**20  # Bytes read at once.


class Parts:
    """A folder with finished batches, one file for each run and process.

    A line is one batch, `{"batch": 3, "summaries": [...], "n_cut": 0}`. A process that was killed
    may have left half a line at the end of its file, which is skipped; nothing is appended to it.

    Args:
        folder: Folder beside the output; made by `claim`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._own = folder / f"{uuid.uuid4().hex}.jsonl"

    def claim(self, identity: Mapping[str, Any]) -> bool:
        """Keeps the batches that belong to `identity`, and deletes those of anything else.

        Returns:
            Whether batches of something else were deleted.
        """
        text, owner = json.dumps(identity, sort_keys=True, indent=2), mark_of(self.folder)
        if owner == text:
            return False
        there = any(self.folder.glob("*.jsonl"))
        discard(self.folder, owner)
        claim(self.folder, text)
        return there

    def read(self) -> dict[int, Summaries]:
        """The summaries of every finished batch by its number."""
        found = {}
        for path in self.folder.glob("*.jsonl"):
            for line in path.read_text(encoding="utf-8").split("\n"):
                try:
                    part = json.loads(line)
                    found[part["batch"]] = Summaries(part["summaries"], part["n_cut"])
                except (ValueError, KeyError):
                    continue  # Half a line, what follows the last one, or of an older version.
        return found

    def add(self, batch: int, summaries: Summaries) -> None:
        """Adds a finished batch; it is in the file when this returns."""
        part = {"batch": batch, "summaries": summaries.texts, "n_cut": summaries.n_cut}
        with self._own.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(part)}\n")

    def remove(self) -> None:
        """Deletes the folder."""
        discard(self.folder, mark_of(self.folder))


class Prediction:
    """Summarises every row of a file, in its order.

    Args:
        recipe: The recipe, for how the data are read and how summaries are scored.
        model: Folder of a model; `"best"`: the weights that the search has kept of its best trial.
            Default: `model/` in the output folder.
        source: File with dialogues, in any form that the recipe's data may have. Default: the
            recipe's test split.
        output: CSV file for the summaries. Default: `predictions.csv` in the output folder.

    Attributes:
        summarizer: The model, once `prepare` has loaded it.
        folder: Where its weights are from.
        description: What the summaries of the rows with a dialogue are like (`Summaries.describe`),
            on the main process after `run`.

    A summary is written as it is, even if a spreadsheet would read it as a formula: it is scored by
    its text, and a quotation mark would count.
    """

    summarizer: Summarizer
    folder: Path
    _data: Dialogues
    _id_column: str

    def __init__(
        self,
        recipe: Recipe,
        model: str | None = None,
        source: str | None = None,
        output: str | None = None,
    ) -> None:
        self.recipe, self.experiment = recipe, Experiment(recipe)
        self._model, self._source = model, source
        self.description: dict[str, Any] | None = None
        self.output = Path(output) if output else Path(recipe.output_dir) / "predictions.csv"
        self.scores_path = self.output.with_suffix(".scores.json")
        self._parts = Parts(self.output.with_name(f".{self.output.name}.parts"))

    def prepare(self) -> list[str]:
        """Reads the data, loads the model, and finds what an interrupted run has finished.

        Returns:
            What a user should know, one sentence each.

        Raises:
            HpoError: Something is wrong; nothing has been summarised yet.
        """
        self._check_output()
        on_main(lambda: make_writable(self.output.parent, "output"))
        notes = on_all(self._load)
        data = self._data
        empty = [f"row {n}" for n, text in enumerate(data.dialogues, 1) if not text.strip()]
        if empty:
            notes.append(
                f"{len(empty)} of {len(data)} rows have no dialogue and get an empty summary "
                f"({listed(empty)})"
            )
        if on_main(lambda: self._parts.claim(self._identity())):
            notes.append(
                "the finished part of another prediction is dropped: its model, data or "
                "settings differ"
            )
        return notes

    def run(self) -> dict[str, Any] | None:
        """Summarises what is not finished yet, and writes the files.

        Returns:
            Where rows have references, the mean ROUGE F1 over those rows, their number as `n_rows`,
            and how texts were cut into the tokens that are counted; and `description` as
            `summaries`.

        Raises:
            HpoError: A batch of another process is missing in the end.
        """
        dialogues, summarizer = self._data.dialogues, self.summarizer
        batches, share = summarizer.batches(len(dialogues)), summarizer.share(len(dialogues))
        with stopping_at_storage_failure(self.output.parent):
            done = on_main(self._parts.read)
            for number in show_batches(batches, share, set(done)):
                texts = [dialogues[row] for row in batches[number]]
                self._parts.add(number, summarizer.summarize(texts))
            PartialState().wait_for_everyone()
            return on_main(lambda: self._finish(len(batches)))

    def _check_output(self) -> None:
        section = self.recipe.data
        given = [self._source, section.train, section.validation, section.test]
        files = [name for one in given for name in ([one] if isinstance(one, str) else one or ())]
        if self.output.exists() and any(
            Path(name).is_file() and self.output.samefile(name) for name in files
        ):
            raise DataError(
                f"--output names a file of the data ({self.output}), which would be overwritten; "
                "name another file"
            )

    def _load(self) -> list[str]:
        """Reads the data and loads the model; returns notes on both."""
        section, output_dir = self.recipe.data, Path(self.recipe.output_dir)
        source = section.test if self._source is None else Path(self._source)
        if source is None:
            raise DataError(
                "there is nothing to summarise: the recipe names no test split (data.test) and "
                "no file was given; name one with --input"
            )
        self._data, id_column = read_every_row(source, section)
        self._id_column = id_column or _ID_COLUMN
        notes: list[str] = []
        if self._model == BEST:
            (best,), notes = choose_candidates(self.experiment, output_dir / BEST_PARAMS)
            self.folder = best.checkpoint(output_dir)
            self.summarizer = load_kept(self.experiment, best)
        else:
            self.folder = Path(self._model) if self._model else output_dir / MODEL
            self.summarizer = load_summarizer(self.folder, self.recipe)
        if any(self._data.references):
            _ = self.experiment.rouge  # Its package may be missing.
        return [*notes, *self._data.notes]

    def _identity(self) -> dict[str, Any]:
        """All that decides what is written."""
        texts = "".join(f"{text}\0" for text in self._data.dialogues)
        return {
            "model": digest_of_files(self.folder),
            # The rest of a model whose adapter alone was kept.
            "base": self.recipe.model.model_dump() if self._model == BEST else None,
            "dialogues": hashlib.sha256(texts.encode("utf-8")).hexdigest(),
            "decoding": self.summarizer.describe_decoding(),
            "max_dialogue_tokens": self.summarizer.max_dialogue_tokens,
            "batch_size": self.summarizer.batch_size,
        }

    def _finish(self, n_batches: int) -> dict[str, Any] | None:
        found = self._parts.read()
        if missing := set(range(n_batches)) - found.keys():
            raise HpoError(
                f"{len(missing)} of {n_batches} batches are missing in {self._parts.folder}; all "
                "processes must write into one folder; run the same command again"
            )
        summaries = sum((found[number] for number in range(n_batches)), Summaries([], 0))
        rows = zip(summaries.texts, self._data.dialogues, strict=True)
        own = [text for text, dialogue in rows if dialogue.strip()]
        self.description = Summaries(own, summaries.n_cut).describe()
        scores = self._score(summaries.texts)
        write_text(self.output, self._table(summaries.texts))
        self.scores_path.unlink(missing_ok=True)  # Of an earlier run.
        if scores is not None:
            write_text(self.scores_path, f"{json.dumps(scores, indent=2)}\n")
        self._parts.remove()
        return scores

    def _score(self, summaries: list[str]) -> dict[str, Any] | None:
        references = self._data.references
        scored = [row for row, texts in enumerate(references) if texts]
        if not scored:
            return None
        scores = self.experiment.score(
            [summaries[row] for row in scored], [references[row] for row in scored]
        )
        tokenizer = self.experiment.rouge.tokenizer_name
        counted = {"n_rows": len(scored), "rouge_tokenizer": tokenizer, "rouge_lowercase": True}
        return {**scores, **counted, "summaries": self.description}

    def _table(self, summaries: list[str]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([self._id_column, "summary"])
        writer.writerows(zip(self._data.ids, summaries, strict=True))
        return text.getvalue()


def digest_of_files(folder: Path) -> str:
    """A digest of the names and the contents of all files in a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode() + b"\0")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
