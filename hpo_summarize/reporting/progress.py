"""Progress of a search or a prediction: a live line on a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TextIO

import optuna
from accelerate import PartialState
from optuna.trial import FrozenTrial, TrialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hpo_summarize.errors import StudyMoved
from hpo_summarize.generation import degenerate_note
from hpo_summarize.launch.writer import Writer
from hpo_summarize.study.trials import best_trials, finished_trials, seconds_of
from hpo_summarize.study.user_attrs import (
    BEATEN,
    BEST_EPOCH,
    FAILURE,
    INTERRUPTED,
    N_DECODED,
    SUMMARIES,
    TRAINED_TRIAL,
)


class SearchProgress(TrainerCallback):
    """Prints the progress of a search: one line a trial, and what happens within a trial.

    On a terminal a live line is renewed at every optimizer step, from what the storage said at the
    last evaluation. Elsewhere (a pipe, nohup, a Slurm log) every evaluation is a line, printed at
    once by each worker for its own trials.

    Args:
        study: The study that is searched.
        n_trials: Finished trials wanted.
        objectives: Names of the metrics that are searched for, the first of them is shown.
        writer: Decides which of several workers prints for all of them. None: this process does.
        word: What a trial of this stage is called.
        stream: Stream to print to; default standard output, as it is when a line is printed.
    """

    def __init__(
        self,
        study: optuna.Study,
        n_trials: int,
        objectives: list[str],
        writer: Writer | None = None,
        word: str = "trial",
        stream: TextIO | None = None,
    ) -> None:
        self._study = study
        self._n_trials = n_trials
        self._objective = objectives[0]
        self._writer = writer
        self._word = word
        self._stream = stream
        self._start = time.monotonic()
        self._printed = {trial.number for trial in finished_trials(study)}
        self._before = len(self._printed)
        self._latest: float | None = None
        self._live = ""
        self._trial_start: float | None = None  # None: nothing is trained.
        self._summary: tuple[int, str] | None = None  # None: no live line on this process.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock of a trial."""
        self._trial_start = time.monotonic()
        self._refresh()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """An evaluation from here on, such as the full one of a trained trial, is no epoch."""
        self._trial_start = None

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Renews the live line."""
        self._show_live(state)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Keeps the newest value for the live line, or prints it."""
        self._latest = metrics.get(f"eval_{self._objective}")
        self._refresh()
        self._show_live(state)
        if not self._out.isatty() and self._trial_start and state.is_world_process_zero:
            self._print_epoch(state, time.monotonic() - self._trial_start)

    def on_trial_end(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Prints a line for every trial that has finished since; a callback of the study."""
        self._latest = None
        if self._is_writer():
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
            with self._once(f"trial {trial.number} of {self._study.study_name}") as is_new:
                if is_new:
                    self._print_trial(trial)

    def _is_writer(self) -> bool:
        return self._writer is None or self._writer.is_here()

    def _once(self, what: str) -> AbstractContextManager[bool]:
        return nullcontext(True) if self._writer is None else self._writer.once(what)

    def _print_trial(self, trial: FrozenTrial) -> None:
        parts = [
            f"{self._word} {trial.number:>3} ({len(self._printed)}/{self._n_trials})",
            f"{_fate(trial, self._objective):<34}",
            self._best(),
            f"took {clock(seconds_of(trial) or 0)}",
            self._times(len(self._printed)),
        ]
        if note := degenerate_note(trial.user_attrs.get(SUMMARIES)):
            parts.append(f"note: {note}")
        self._print("  ".join(parts))

    @property
    def _out(self) -> TextIO:
        return self._stream or sys.stdout

    def _print_epoch(self, state: TrainerState, seconds: float) -> None:
        number = str(state.trial_name).rpartition("-")[2]
        self._print(
            f"{self._word} {number:>3}  epoch {state.epoch or 0:g} of {state.num_train_epochs}  "
            f"{self._objective} {self._now()}  after {clock(seconds)}"
        )

    def _refresh(self) -> None:
        """Asks the storage what the live line shows; too slow to be done at every step."""
        shown = self._out.isatty() and self._is_writer()
        self._summary = (len(finished_trials(self._study)), self._best()) if shown else None

    def _show_live(self, state: TrainerState) -> None:
        if self._summary is None:
            return
        done, best = self._summary
        line = (
            f"trial {done + 1}/{self._n_trials}  epoch {state.epoch or 0:.1f}/"
            f"{state.num_train_epochs}  {self._objective} now {self._now()}  {best}  "
            f"{self._times(done)}"
        )
        self._out.write(f"\r{line:<{len(self._live)}}")
        self._out.flush()
        self._live = line

    def _print(self, line: str) -> None:
        if self._live:
            self._out.write(f"\r{' ' * len(self._live)}\r")
            self._live = ""
        self._out.write(f"{line}\n")
        self._out.flush()

    def _now(self) -> str:
        return "-" if self._latest is None else f"{self._latest:.4f}"

    def _best(self) -> str:
        best = best_trials(self._study)
        if not best:
            return "best so far -"
        if len(self._study.directions) > 1:
            return f"Pareto front {len(best)}"
        return f"best so far {best[0].value:.4f} ({self._word} {best[0].number})"

    def _times(self, done: int) -> str:
        used = time.monotonic() - self._start
        here = done - self._before
        left = f"{clock(used / here * max(self._n_trials - done, 0))}" if here else "?"
        return f"used {clock(used)}  to go {left}"


def clock(seconds: float) -> str:
    """Seconds as `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _fate(trial: FrozenTrial, objective: str) -> str:
    if reason := trial.user_attrs.get(FAILURE):
        return f"failed: {reason}"
    if trial.user_attrs.get(INTERRUPTED):
        return "interrupted"
    trained = trial.user_attrs.get(TRAINED_TRIAL)
    if trial.state == TrialState.COMPLETE:
        values = "/".join(f"{value:.4f}" for value in trial.values)
        epoch = f"at epoch {trial.user_attrs[BEST_EPOCH]:g}"
        return f"{objective} {values} {epoch if trained is None else f'by trial {trained}'}"
    if trained is not None:
        return f"pruned after {trial.user_attrs.get(N_DECODED, 0)} dialogues"
    if BEATEN in trial.user_attrs:
        return f"cannot win after epoch {trial.last_step}"
    return f"pruned after epoch {trial.last_step}"


_SECONDS = 30  # Between two lines where the output is no terminal.


class PredictionProgress:
    """Goes through the batches that are not done yet; the main process prints how far it is.

    Args:
        batches: The numbers of the rows of each batch.
        share: The numbers of this process's batches.
        done: The numbers of finished batches.
    """

    def __init__(self, batches: Sequence[range], share: Sequence[int], done: set[int]) -> None:
        self._batches, self._done = batches, done
        self._todo = [number for number in share if number not in done]

    def __iter__(self) -> Iterator[int]:
        start = shown = time.monotonic()
        live = PartialState().is_main_process and sys.stdout.isatty()
        self._print_start()
        for count, number in enumerate(self._todo, 1):
            yield number
            now = time.monotonic()
            if live or now - shown > _SECONDS:
                shown = now
                left = (now - start) / count * (len(self._todo) - count)
                self._print(f"batch {count} of {len(self._todo)}  to go {clock(left)}", live)
        if live and self._todo:
            print()

    def _print_start(self) -> None:
        rows = sum(len(batch) for batch in self._batches)
        done = sum(len(self._batches[number]) for number in self._done)
        state = PartialState()
        processes = f", {state.num_processes} processes" if state.num_processes > 1 else ""
        known = f", of which {done} are done already" if done else ""
        self._print(f"rows     {rows}{known}{processes}")

    def _print(self, line: str, live: bool = False) -> None:
        if PartialState().is_main_process:
            print(f"\r{line:<60}" if live else line, end="" if live else "\n", flush=True)
