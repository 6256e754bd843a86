"""From the results of a search to the final model: `Retraining`, and the steps of one training."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import DataCollatorForSeq2Seq

from hpo_summarize.components import Experiment
from hpo_summarize.config.schema import Recipe
from hpo_summarize.data.dialogues import Dialogues, joined
from hpo_summarize.data.splits import leak_notes, read_dialogues
from hpo_summarize.errors import HpoError, Problem, RecipeError, stopping_at_storage_failure
from hpo_summarize.final_model.card import check_replaceable, write_card
from hpo_summarize.final_model.export import (
    check_adapter,
    make_repository,
    replace_folder,
    upload,
    write_model,
)
from hpo_summarize.final_model.select import BEST_PARAMS, choose_candidates
from hpo_summarize.final_model.train import (
    FITTING,
    Trained,
    Training,
    TrainingProgress,
    best_of,
    in_words,
)
from hpo_summarize.io import claim, discard, make_writable, mark_of, write_text
from hpo_summarize.launch.processes import on_all, on_main
from hpo_summarize.models.outputs import OUTPUTS, difference_from, first_rows, write_outputs
from hpo_summarize.study.fingerprint import fingerprint_of
from hpo_summarize.study.trials import Candidate
from hpo_summarize.summarizer import load_summarizer, summarize_all

MODEL = "model"
_WORK = "training"  # Unfinished and not yet chosen trainings, in the output folder.
_MEASURED = "measured.json"
_COMPARED = 2  # Rows by which the saved model is compared with the one in memory.


class Retraining:
    """Trains the best trials of a search again, measures them, and saves the best one.

    Args:
        recipe: The recipe of the search.
        best_params: Path of `best_params.json`. Default: the one in the output folder.
        top: Number of best trials that are trained, at least 1.
        trial: Number of the one trial to train, in place of the best.
        on_event: Function that gets one line for each step of the work. Default: no output.
    """

    def __init__(
        self,
        recipe: Recipe,
        best_params: str | None = None,
        top: int = 1,
        trial: int | None = None,
        on_event: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.recipe = recipe
        self.output_dir = Path(recipe.output_dir)
        self.experiment = Experiment(recipe)
        self._path = Path(best_params) if best_params else self.output_dir / BEST_PARAMS
        self._top, self._trial = top, trial
        self._say = on_event

    @functools.cached_property
    def _chosen(self) -> tuple[list[Candidate], list[str]]:
        return choose_candidates(self.experiment, self._path, self._top, self._trial)

    @property
    def candidates(self) -> list[Candidate]:
        """The trials to train."""
        return self._chosen[0]

    @property
    def is_named(self) -> bool:
        """Whether the user has named the one trial to train."""
        return self._trial is not None

    @property
    def notes(self) -> list[str]:
        """What a user should know of the trials and of the data, one sentence each."""
        splits = (*self.experiment.splits, self.test)
        return [*self._chosen[1], *(note for split in splits for note in split.notes)]

    @property
    def trainings(self) -> list[Training]:
        """Every trial with every seed."""
        seeds = self.recipe.train.seeds
        return [Training(one, seed) for one in self.candidates for seed in seeds]

    @functools.cached_property
    def test(self) -> Dialogues:
        """The rows of the test split that have summaries to score by, maybe none, with notes."""
        section = self.recipe.data
        if section.test is None:
            return Dialogues([], [], [])
        test = read_dialogues(section.test, section, require_summaries=False)
        scored = test.rows([row for row, texts in enumerate(test.references) if texts])
        if not scored:
            note = "the test split (data.test) has no summaries: there will be no test scores"
            return scored.with_notes(note)
        if missing := len(test) - len(scored):
            note = f"{missing} of {len(test)} test dialogues have no summary to score by"
            scored = scored.with_notes(note)
        return scored.with_notes(*leak_notes(self.trained_on, scored, "test", section))

    @functools.cached_property
    def trained_on(self) -> Dialogues:
        """The training split, and with `train.use_validation` the validation split behind it."""
        splits = self.experiment.splits
        return joined(splits) if self.recipe.train.use_validation else splits[0]

    def prepare(self) -> None:
        """Checks and loads everything that the training needs, cheap things first.

        Raises:
            HpoError: Something is wrong; nothing has been trained yet.
        """
        if self._top < 1:
            raise RecipeError([Problem("--top", f"must be at least 1, got {self._top}")])
        if self._top > 1 and self.recipe.train.use_validation:
            message = "leaves nothing to choose among trials by; set it to false, or drop --top"
            raise RecipeError([Problem("train.use_validation", message)])
        on_main(self._check_folder)
        on_all(self._load)
        if self.recipe.train.push_to_hub:
            on_main(lambda: make_repository(str(self.recipe.train.push_to_hub)))

    def _check_folder(self) -> None:
        make_writable(self.output_dir)
        check_replaceable(self.output_dir / MODEL)

    def _load(self) -> None:
        experiment = self.experiment
        for training in self.trainings:
            training.arguments(experiment, self.output_dir)
        _ = experiment.rouge, experiment.splits, self.test, experiment.tokenizer

    def run(self) -> list[Trained]:
        """Trains and measures everything; what an interrupted run has finished is kept.

        Returns:
            The finished trainings, by trial and seed in the given order.
        """
        with stopping_at_storage_failure(self.output_dir / _WORK):
            return [self._finish(training) for training in self.trainings]

    def publish(self, trained: list[Trained]) -> Trained:
        """Writes the best of the trainings to `model/` and, if the recipe says so, to the Hub.

        Returns:
            The best one, see `best_of`.
        """
        search, folder = self.recipe.search, self.output_dir / MODEL
        best = best_of(trained, search.objectives[0], search.direction == "maximize")
        with stopping_at_storage_failure(folder):
            on_main(lambda: self._write(best, trained))
        # Not by `on_main`: an upload may take longer than the timeout of the group.
        if PartialState().is_main_process:
            if self.recipe.train.push_to_hub:
                upload(folder, self.recipe.train.push_to_hub)
            _clear_work(self.output_dir / _WORK)
        return best

    def _finish(self, training: Training) -> Trained:
        """Does what is left to do of a training; its folder holds what has been done."""
        folder = self.output_dir / _WORK / training.name
        model, measured = folder / MODEL, folder / _MEASURED
        on_main(lambda: _claim(folder, self._identity(training)))
        if not on_main(model.is_dir):
            on_main(lambda: measured.unlink(missing_ok=True))
            self._train(training, folder)
        if not on_main(measured.is_file):
            found = self._measure(folder)
            on_main(lambda: write_text(measured, json.dumps(found)))
        return Trained(training, model, **on_main(lambda: json.loads(measured.read_text("utf-8"))))

    def _identity(self, training: Training) -> str:
        """All that decides the result of a training, as JSON."""
        content = {
            **fingerprint_of(self.experiment.decided_recipe, self._splits),
            "params": training.candidate.params,
            "epoch": training.candidate.epoch,
            "seed": training.seed,
            "train": self.recipe.train.model_dump(include={"use_validation", "save_adapter"}),
        }
        return json.dumps(content, indent=2, sort_keys=True, default=str)

    def _train(self, training: Training, folder: Path) -> None:
        train, validation = self.trained_on, self.experiment.splits[1]
        self._say(f"{training.name}: {training.candidate.epoch:g} epochs on {len(train)} dialogues")
        progress = [TrainingProgress(self._say)]
        model = training.run(self.experiment, folder, train, validation, progress)
        on_main(lambda: self._save(model, folder))

    def _save(self, model: Any, folder: Path) -> None:
        """Writes the model, and what it gives for a few rows before its adapters are merged."""
        experiment, validation = self.experiment, self.experiment.splits[1]
        few = experiment.tokenize(validation.head(_COMPARED))
        batch = first_rows(few, DataCollatorForSeq2Seq(experiment.tokenizer))
        if batch is not None:
            write_outputs(model, batch, folder / OUTPUTS)
        limit, adapter = self.recipe.data.max_dialogue_tokens, self.recipe.train.save_adapter
        write_model(model, experiment.tokenizer, folder / MODEL, limit, adapter)

    def _measure(self, folder: Path) -> dict[str, Any]:
        """Scores the model as it was saved: what is in the folder is what was measured.

        Returns:
            The fields `scores` and `summaries` of `Trained`.

        Raises:
            HpoError: It is not the one that was trained.
        """
        summarizer = load_summarizer(folder / MODEL, self.recipe)
        on_all(lambda: _compare(summarizer.model, folder))
        on_main(lambda: check_adapter(self.experiment, folder / MODEL, folder / OUTPUTS))
        scores, described = {}, {}
        for name, split in self._splits.items():
            if name == "train" or name == "validation" and self.recipe.train.use_validation:
                continue
            summaries = summarize_all(summarizer, split.dialogues)
            scores[name] = self.experiment.score(summaries.texts, split.references)
            described[name] = summaries.describe()
            self._say(f"  {name}: {in_words(scores[name])}")
        return {"scores": scores, "summaries": described}

    @property
    def _splits(self) -> dict[str, Dialogues]:
        """The rows of each split by its name; without the test split where it has no summaries."""
        train, validation = self.experiment.splits
        test = {"test": self.test} if self.test else {}
        return {"train": train, "validation": validation, **test}

    def _write(self, best: Trained, trained: list[Trained]) -> None:
        sizes = {name: len(split) for name, split in self._splits.items()}
        write_card(best, trained, self.experiment, sizes)
        check_replaceable(self.output_dir / MODEL)
        new = best.folder
        if self.recipe.train.push_to_hub:  # Until the upload has succeeded both are needed.
            new = self.output_dir / f".{MODEL}.new"
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(best.folder, new)
        replace_folder(new, self.output_dir / MODEL)


def _compare(model: Any, folder: Path) -> None:
    if differs := difference_from(folder / OUTPUTS, model):
        raise HpoError(
            f"the model in {folder / MODEL}, loaded again, is not the one that was trained "
            f"({differs}), and is not published; scripts/predict.py --model best has the weights "
            "that the search kept. Leave the keys of lora beside r, alpha, dropout and "
            "target_modules out, or take another model, and search again"
        )


def _claim(folder: Path, owner: str) -> None:
    """Makes the folder of a training, and clears it of another training of the same name."""
    known = mark_of(folder)
    if known != owner:
        discard(folder, known)
        claim(folder, owner)


def _clear_work(work: Path) -> None:
    """Deletes the finished trainings, and the folder that they are in if nothing else is there."""
    for folder in work.iterdir():
        discard(folder, mark_of(folder))
    (work / FITTING).unlink(missing_ok=True)
    with suppress(OSError):  # It holds files of others.
        work.rmdir()
