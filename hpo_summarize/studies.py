"""The study of a search, and in a staged search the second one: made, checked, found again."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import BaseTrial, FrozenTrial

from hpo_summarize.components import Experiment
from hpo_summarize.config.loader import slug
from hpo_summarize.errors import Problem, RecipeError, StudyError
from hpo_summarize.io import first_taken, taken_message
from hpo_summarize.redact import redact_url
from hpo_summarize.study.fingerprint import check_fingerprint, fingerprint_of
from hpo_summarize.study.location import find_study
from hpo_summarize.study.run import open_study
from hpo_summarize.study.storage import default_storage_url
from hpo_summarize.study.trials import best_trials
from hpo_summarize.study.user_attrs import (
    DECODING_STUDY,
    FINGERPRINT,
    MAX_NEW_TOKENS,
    OBJECTIVES,
)
from hpo_summarize.study.warm_start import warm_start_of


class SearchStudies:
    """The studies of one output folder and one study name.

    Args:
        experiment: The parts of the recipe.
        worker: Number of this process among those that search together.

    Attributes:
        name: Name of the study, or of the first one of a staged search.
        storage: URL of the storage, with its password.
        folder: Folder in which the trials keep their checkpoints.
    """

    def __init__(self, experiment: Experiment, worker: int = 0) -> None:
        self._experiment, self._worker = experiment, worker
        self._recipe = experiment.recipe
        output_dir = Path(self._recipe.output_dir)
        self.name = self._recipe.search.study_name or "study"
        self.storage = self._recipe.search.storage or default_storage_url(output_dir)
        self.folder = output_dir / "trials" / self.name

    @functools.cached_property
    def first(self) -> optuna.Study:
        """The study, with the recipe's values waiting as trial 0 where it is made now."""
        search, space = self._recipe.search, self._experiment.space
        self.check()  # Before anything is queued.
        study = open_study(
            search,
            self.name,
            self.storage,
            [search.direction] * len(search.objectives),
            baselines=[space.baseline(), *(space.baseline(given) for given in search.baselines)],
            worker=self._worker,
            n_epochs=max(self._recipe.possible_values("num_epochs")),
            warm_start=warm_start_of(self._recipe, self._fingerprint(), space.sample),
        )
        self._experiment.adopt_length(study.user_attrs.get(MAX_NEW_TOKENS))
        check_fingerprint(study, self._fingerprint())
        for name, value in (
            (MAX_NEW_TOKENS, self._experiment.max_new_tokens),
            (OBJECTIVES, search.objectives),
        ):
            if study.user_attrs.get(name) != value:
                study.set_user_attr(name, value)
        return study

    def check(self) -> None:
        """Makes nothing.

        Raises:
            StudyError: The storage cannot be reached, or the study is another recipe's.
            RecipeError: The folder of a trial to come holds the weights of another study.
        """
        folders = [self._folder_of(number) for number in range(self._recipe.search.n_trials)]
        taken = first_taken(folders, self._count_begun)
        if taken is not None:
            message = f"{taken_message(taken)}, or another study_name"
            raise RecipeError([Problem("output_dir", message)])
        study = find_study(self.storage, self.name, to_create=True)
        if study is not None and FINGERPRINT in study.user_attrs:
            self._experiment.adopt_length(study.user_attrs.get(MAX_NEW_TOKENS))
            check_fingerprint(study, self._fingerprint())

    def made(self) -> optuna.Study:
        """The study of this search or of an earlier one; it is never made here.

        Raises:
            StudyError: No search has run yet.
        """
        if "first" in self.__dict__:
            return self.first
        study = find_study(self.storage, self.name)
        if study is None:
            raise StudyError(
                f"there is no study '{self.name}' in {redact_url(self.storage)} yet; "
                "call optimize() first"
            )
        return study

    def second(self) -> optuna.Study | None:
        """The latest decoding study of a staged search; None if there is none yet."""
        first = self.made()
        name, storage = first.user_attrs.get(DECODING_STUDY), first._storage
        if name not in optuna.get_all_study_names(storage):
            return None
        return optuna.load_study(study_name=name, storage=storage)

    def final(self) -> optuna.Study:
        """The study whose best trial is the best of all: in a staged search the second one."""
        second = self.second()
        return second if second is not None and best_trials(second) else self.made()

    def folder_of(self, trial: BaseTrial | FrozenTrial) -> Path:
        """Where a trial keeps its checkpoints; one of a study of the caller's own, beside them."""
        study = getattr(trial, "study", None)
        if study is None or study.study_name == self.name:
            return self._folder_of(trial.number)
        return self.folder / f"other-{slug(study.study_name)}" / f"trial-{trial.number}"

    def _folder_of(self, number: int) -> Path:
        return self.folder / f"trial-{number}"

    def _count_begun(self) -> int:
        study = find_study(self.storage, self.name)
        return 0 if study is None else len(study.get_trials(deepcopy=False))

    def _fingerprint(self) -> dict[str, Any]:
        train, validation = self._experiment.splits
        recipe = self._experiment.decided_recipe
        return fingerprint_of(recipe, {"train": train, "validation": validation})
