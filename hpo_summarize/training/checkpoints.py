"""The folders of trials: resumed after a crash, slimmed at the end, deleted when not needed."""

from __future__ import annotations

import copy
import json
import shutil
import uuid
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import BaseTrial, FrozenTrial

from hpo_summarize.errors import HpoError, RunStopped
from hpo_summarize.io import (
    claim,
    discard,
    first_taken,
    folder_below,
    is_taken,
    mark_of,
    taken_message,
)
from hpo_summarize.study.trials import best_trials, counts, values_of
from hpo_summarize.study.user_attrs import CONTINUES, FOLDER

_STATE = "trainer_state.json"
# Needed for resuming only; the optimizer's state is twice the size of the weights.
_FOR_RESUMING = (
    "optimizer.*",
    "scheduler.pt",
    "scaler.pt",
    "rng_state*.pth",
    "training_args.bin",
)


class TrialFolders:
    """Where the trials of a search keep their checkpoints.

    Args:
        root: Folder that all of them are in.
        hp_name: From a trial to the name of its folder. None: `run-N`.
    """

    def __init__(self, root: Path, hp_name: Callable[[Any], str] | None) -> None:
        self.root, self.hp_name = root, hp_name

    def of(self, trial: BaseTrial | FrozenTrial) -> Path:
        """The folder of a trial.

        Raises:
            HpoError: `hp_name` gave one that is not inside of `root`.
        """
        if self.hp_name is None:
            return self._of_number(trial.number)
        if isinstance(trial, FrozenTrial):
            trial = copy.copy(trial)
            trial.params = values_of(trial)  # Which it has for `hp_name` while it runs, too.
        return folder_below(self.root, self.hp_name(trial))

    def _of_number(self, number: int) -> Path:
        return folder_below(self.root, f"run-{number}")

    def begin(self, trial: optuna.Trial, world_size: int) -> Path | None:
        """Makes the folder of a trial; returns the checkpoint to resume from, if there is one.

        Args:
            trial: The trial.
            world_size: Number of processes that are going to train it.

        Raises:
            RunStopped: It holds files that are not of this trial.
        """
        folder, left = self.of(trial), self._of_interrupted(trial)
        mark = (mark_of(left) if left else None) or uuid.uuid4().hex
        trial.set_user_attr(FOLDER, mark)
        if left is None:
            claim(folder, mark)
            return None
        if is_taken(folder) and folder != left:
            raise RunStopped(taken_message(folder))
        return take_over(left, folder, world_size)

    def _of_interrupted(self, trial: optuna.Trial) -> Path | None:
        """The folder of the trial that this one continues, or of the one before that.

        A trial may be interrupted again before it could take over what there was.
        """
        trials = trial.study.get_trials(deepcopy=False)
        number = trial.user_attrs.get(CONTINUES)
        while number is not None:
            folder = self.of(trials[number])
            if mark_of(folder) == trials[number].user_attrs.get(FOLDER, ""):
                return folder
            number = trials[number].user_attrs.get(CONTINUES)
        return None

    def check(self, study: optuna.Study, n_trials: int) -> None:
        """Refuses folders in which another search has kept the weights of its `run-N`.

        Raises:
            HpoError: A folder is taken. With `hp_name` that is checked before each trial.
        """
        if self.hp_name is not None:
            return
        folders = [self._of_number(number) for number in range(n_trials)]
        if taken := first_taken(folders, lambda: len(study.get_trials(deepcopy=False))):
            raise HpoError(
                f"{taken_message(taken)}. To continue an earlier search pass its storage=..., "
                "study_name=... and load_if_exists=True"
            )

    def keep_best(self, count: int, study: optuna.Study) -> None:
        """Deletes the folders of all ended trials but those of the `count` best ones."""
        # Listed first: a trial that another worker ends meanwhile may be the new best one.
        ended = [trial for trial in study.get_trials(deepcopy=False) if counts(trial)]
        keep = {best.number for best in best_trials(study, count)}
        for trial in ended:
            if trial.number not in keep:
                discard(self.of(trial), trial.user_attrs.get(FOLDER))


def take_over(old: Path, new: Path, world_size: int) -> Path | None:
    """Moves the folder of an interrupted trial and finds the checkpoint to resume from.

    Args:
        old: Folder of the interrupted trial; may be missing.
        new: Folder of the trial that continues it; must not exist, or be the same one.
        world_size: Number of processes that are going to train it.

    Returns:
        The checkpoint of the last epoch that was saved as a whole; None if there is none.
    """
    if not old.is_dir():
        return None
    old.rename(new)
    last = last_checkpoint(new, world_size)
    for checkpoint in new.glob("checkpoint-*"):
        _point_to_folder(checkpoint)
    return last


def last_checkpoint(folder: Path, world_size: int) -> Path | None:
    """The newest checkpoint from which a training is resumed with the same result.

    Without its optimizer's state, or the random numbers of one process, the Trainer would resume,
    too, and give another value. Checkpoints that lack a part are deleted: the Trainer would
    count them among those to keep.

    Args:
        folder: Output folder of one training; may be missing.
        world_size: Number of processes that are going to train.
    """
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        if _is_whole(checkpoint, world_size):
            whole.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(whole, key=_step, default=None)


def _is_whole(checkpoint: Path, world_size: int) -> bool:
    """Whether every part is there, and was written to its end.

    The Trainer of the main process writes its state last; `slim` takes the optimizer's away first.
    A checkpoint of another number of processes lacks some of the random numbers.
    """
    several = [f"rng_state_{rank}.pth" for rank in range(world_size)]
    parts = ("optimizer.pt", "scheduler.pt", *(several if world_size > 1 else ["rng_state.pth"]))
    # `torch.save` writes a zip file, whose directory stands at its end.
    zipped = all(zipfile.is_zipfile(checkpoint / name) for name in parts)
    return zipped and read_state(checkpoint) is not None


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """The trainer's state in a checkpoint; None if it is missing or half written."""
    try:
        return json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def evaluations(checkpoint: Path) -> list[dict[str, float]]:
    """The metrics of every evaluation before a checkpoint, oldest first, with their `epoch`."""
    history = (read_state(checkpoint) or {}).get("log_history", [])
    found: dict[int, dict[str, float]] = {}
    for entry in history:
        if any(key.startswith("eval_") for key in entry):
            # The step is in the log only; an objective that adds up all metrics must not see
            # it. Each of several evaluation sets has an entry of its own.
            metrics = {key: value for key, value in entry.items() if key != "step"}
            found.setdefault(entry["step"], {}).update(metrics)
    return list(found.values())


def slim(folder: Path, best: str | None) -> None:
    """Leaves of a finished trial only the weights of its best epoch.

    Args:
        folder: The trial's folder.
        best: The checkpoint with the best metric; None: the last one.
    """
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step)
    keep = folder / Path(best).name if best else (checkpoints[-1] if checkpoints else None)
    for checkpoint in checkpoints:
        if checkpoint != keep:
            # First: if this process is killed here, the rest is not taken for a whole checkpoint.
            (checkpoint / _STATE).unlink(missing_ok=True)
            shutil.rmtree(checkpoint)
    if keep is not None:
        for path in (path for pattern in _FOR_RESUMING for path in keep.glob(pattern)):
            path.unlink()


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _point_to_folder(checkpoint: Path) -> None:
    """The state names the best checkpoint by its path, which has changed."""
    state = read_state(checkpoint) or {}
    best = state.get("best_model_checkpoint")
    if best:
        state["best_model_checkpoint"] = str(checkpoint.parent / Path(best).name)
        new = checkpoint / f"{_STATE}.new"
        new.write_text(json.dumps(state, indent=2), encoding="utf-8")
        new.replace(checkpoint / _STATE)
