"""Progress of a search or a prediction: a live line on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import optuna
from accelerate import PartialState
from optuna.trial import FrozenTrial, TrialState
from transformers import TrainerCallback, TrainerState

from hpo_summarize.errors import StudyMoved
from hpo_summarize.generation import degenerate_note
from hpo_summarize.launch.writer import Writer
from hpo_summarize.reporting.outcome import failure_of
from hpo_summarize.study.trials import best_trials, finished_trials, seconds_of
from hpo_summarize.study.user_attrs import (
    BEATEN,
    BEST_EPOCH,
    N_DECODED,
    SUMMARIES,
    TRAINED_TRIAL,
)

_SECONDS = 30  # Between two lines of a prediction where the output is no terminal.


def clock(seconds: float) -> str:
    """Seconds as `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class SearchProgress(TrainerCallback):
    """Prints the progress of a search: one line a trial, and the epochs of the trial that runs.

    On a terminal a live line is renewed at every optimizer step, from what the storage held at the
    last evaluation. Elsewhere (a pipe, nohup, a Slurm log) every evaluation is a line, printed at
    once by each worker for its own trials.

    Args:
        study: The study that is searched.
        n_trials: Finished trials wanted.
        objectives: Names of the metrics that are searched for, the first of them is shown.
        writer: Decides which of several workers prints for all of them.
        word: What a trial of this stage is called.
    """

    def __init__(
        self,
        study: optuna.Study,
        n_trials: int,
        objectives: list[str],
        writer: Writer,
        word: str = "trial",
    ) -> None:
        self._study = study
        self._n_trials = n_trials
        self._objective = objectives[0]
        self._writer = writer
        self._word = word
        self._start = time.monotonic()
        self._printed = {trial.number for trial in finished_trials(study)}
        self._before = len(self._printed)
        self._latest = "-"  # Value of the last evaluation.
        self._live = ""
        self._trial_start: float | None = None  # None: nothing is trained.
        self._known: tuple[int, str] | None = None  # None: no live line on this process.

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock of a trial."""
        self._trial_start = time.monotonic()
        self._read_study()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation from here on, such as the full one of a trained trial, is no epoch."""
        self._trial_start = None

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Renews the live line."""
        self._show_live(state)

    def on_evaluate(
        self,
        args: Any,
        state: TrainerState,
        control: Any,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Keeps the newest value for the live line, or prints it."""
        value = metrics.get(f"eval_{self._objective}")
        self._latest = "-" if value is None else f"{value:.4f}"
        self._read_study()
        self._show_live(state)
        if not sys.stdout.isatty() and self._trial_start and state.is_world_process_zero:
            number = str(state.trial_name).rpartition("-")[2]
            self._print(
                f"{self._word} {number:>3}  epoch {state.epoch or 0:g} of {state.num_train_epochs}"
                f"  {self._objective} {self._latest}"
                f"  after {clock(time.monotonic() - self._trial_start)}"
            )

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Prints a line for every trial that has finished since; a callback of the study."""
        self._latest = "-"
        if self._writer.is_here():
            self.print_finished()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around a search: prints what has finished, also where it fails.

        Every worker does, and not the writer alone: it may be gone before the last trial ends.
        """
        try:
            yield
        except StudyMoved:  # Without its file not every study can be read.
            raise
        except BaseException:
            self.print_finished()
            raise
        self.print_finished()

    def print_finished(self) -> None:
        """Prints a line for every finished trial that no worker of this launch has printed yet."""
        new = [t for t in finished_trials(self._study) if t.number not in self._printed]
        for trial in new:
            self._printed.add(trial.number)
            with self._writer.once(f"trial {trial.number} of {self._study.study_name}") as is_new:
                if is_new:
                    self._print_trial(trial)

    def _print_trial(self, trial: FrozenTrial) -> None:
        n_finished = len(self._printed)
        parts = [
            f"{self._word} {trial.number:>3} ({n_finished}/{self._n_trials})",
            f"{_result(trial, self._objective):<34}",
            self._best(),
            f"took {clock(seconds_of(trial) or 0)}",
            self._times(n_finished),
        ]
        if note := degenerate_note(trial.user_attrs.get(SUMMARIES)):
            parts.append(f"note: {note}")
        self._print("  ".join(parts))

    def _read_study(self) -> None:
        """Reads what the live line shows from the storage; too slow to be done at every step."""
        shown = sys.stdout.isatty() and self._writer.is_here()
        self._known = (len(finished_trials(self._study)), self._best()) if shown else None

    def _show_live(self, state: TrainerState) -> None:
        if self._known is None:
            return
        done, best = self._known
        line = (
            f"trial {done + 1}/{self._n_trials}  epoch {state.epoch or 0:.1f}/"
            f"{state.num_train_epochs}  {self._objective} now {self._latest}  {best}  "
            f"{self._times(done)}"
        )
        print(f"\r{line:<{len(self._live)}}", end="", flush=True)
        self._live = line

    def _print(self, line: str) -> None:
        if self._live:
            print(f"\r{' ' * len(self._live)}\r", end="")
            self._live = ""
        print(line, flush=True)

    def _best(self) -> str:
        best = best_trials(self._study)
        if not best:
            return "best so far -"
        if len(self._study.directions) > 1:
            return f"Pareto front {len(best)}"
        return f"best so far {best[0].value:.4f} ({self._word} {best[0].number})"

    def _times(self, done: int) -> str:
        used, here = time.monotonic() - self._start, done - self._before
        left = clock(used / here * max(self._n_trials - done, 0)) if here else "?"
        return f"used {clock(used)}  to go {left}"


def _result(trial: FrozenTrial, objective: str) -> str:
    if reason := failure_of(trial):
        return f"failed: {reason}"
    trained = trial.user_attrs.get(TRAINED_TRIAL)
    if trial.state == TrialState.COMPLETE:
        values = "/".join(f"{value:.4f}" for value in trial.values)
        epoch = f"at epoch {trial.user_attrs[BEST_EPOCH]:g}"
        return f"{objective} {values} {epoch if trained is None else f'by trial {trained}'}"
    if trained is not None:
        return f"pruned after {trial.user_attrs.get(N_DECODED, 0)} dialogues"
    ended = "cannot win" if BEATEN in trial.user_attrs else "pruned"
    return f"{ended} after epoch {trial.last_step}"


def show_batches(batches: Sequence[range], share: Sequence[int], done: set[int]) -> Iterator[int]:
    """Yields the batches of this process that are not done yet; the main process prints how far.

    Args:
        batches: The numbers of the rows of each batch.
        share: The numbers of this process's batches.
        done: The numbers of finished batches.
    """
    processes = PartialState()
    todo = [number for number in share if number not in done]
    n_rows, n_done = sum(map(len, batches)), sum(len(batches[number]) for number in done)
    if processes.is_main_process:
        known = f", of which {n_done} are done already" if n_done else ""
        others = f", {processes.num_processes} processes" if processes.num_processes > 1 else ""
        print(f"rows     {n_rows}{known}{others}", flush=True)
    start = shown = time.monotonic()
    live = sys.stdout.isatty()
    for count, number in enumerate(todo, 1):
        yield number
        now = time.monotonic()
        if processes.is_main_process and (live or now - shown > _SECONDS):
            shown, left = now, (now - start) / count * (len(todo) - count)
            line = f"batch {count} of {len(todo)}  to go {clock(left)}"
            ended = count == len(todo) or not live
            print(f"\r{line:<60}" if live else line, end="\n" if ended else "", flush=True)
