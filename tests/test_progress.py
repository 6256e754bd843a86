"""What a running search shows, on a terminal and in a pipe, and what that costs its storage."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from transformers import TrainerCallback

from hpo_summarize.launch.writer import Writer
from hpo_summarize.reporting.progress import SearchProgress
from hpo_summarize.study.storage import build_storage
from hpo_summarize.training.trainer import SummarizationTrainer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class StatementsOfStep(TrainerCallback):
    """Counts what comes between two callbacks of one step: statements and tries of the lock."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts
        self.of_steps: list[int] = []
        self.last = SecondOfStep(self)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.of_steps.append(-sum(self._counts))

    def close(self) -> None:
        self.of_steps[-1] += sum(self._counts)


class SecondOfStep(TrainerCallback):
    def __init__(self, first: StatementsOfStep) -> None:
        self._first = first

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._first.close()


@pytest.fixture
def statements() -> Iterator[list[int]]:
    """Grows by one with every SQL statement of this process."""
    counts: list[int] = []

    def count(*_: Any) -> None:
        counts.append(1)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", count)
    yield counts
    sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", count)


def search(make_trainer: Callable[..., Any], folder: Path, *around: TrainerCallback) -> None:
    """Two trials of two epochs of four steps."""
    storage = build_storage(f"sqlite:///{folder / 'study.db'}")
    study = optuna.create_study(study_name="s", storage=storage)
    progress = SearchProgress(study, 2, ["loss"], Writer(folder))
    trainer = make_trainer(SummarizationTrainer, num_train_epochs=2, per_device_train_batch_size=8)
    for callback in (*around[:1], progress, *around[1:]):
        trainer.add_callback(callback)
    trainer.hyperparameter_search(
        lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-3)},
        lambda metrics: metrics["eval_loss"],
        n_trials=2,
        hp_name=lambda trial: f"trial-{trial.number}",
        study=study,
        callbacks=[progress.on_trial_end],
    )


def test_the_live_line_of_a_terminal_reads_nothing_from_the_storage_at_a_step(
    make_trainer: Callable[..., Any],
    tmp_path: Path,
    statements: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = Writer.is_here

    def is_here(writer: Writer) -> bool:
        statements.append(1)  # A system call on a file that may lie on a file server.
        return real(writer)

    monkeypatch.setattr(Writer, "is_here", is_here)
    terminal, counted = Terminal(), StatementsOfStep(statements)
    monkeypatch.setattr(sys, "stdout", terminal)
    search(make_trainer, tmp_path, counted, counted.last)
    assert counted.of_steps == [0] * 16
    shown = terminal.getvalue().split("\r")
    assert any(re.search(r"trial 2/2  epoch 1.2/2  loss now \d", line) for line in shown)
    assert "best so far" in shown[-1] and "epoch 2/2" not in shown[-1]


def test_where_the_output_is_no_terminal_every_epoch_is_a_line(
    make_trainer: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search(make_trainer, tmp_path)
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("trial ")]
    epochs = [f"trial   {n}  epoch {epoch} of 2  loss" for n in (0, 1) for epoch in (1, 2)]
    assert [line[: len(epochs[0])] for line in lines if "epoch" in line and "best" not in line] == (
        epochs
    )
    assert all(re.search(r"loss \d\.\d{4}  after 0:00:\d\d$", lines[n]) for n in (0, 1, 3, 4))
    assert "\r" not in printed and len(lines) == 6


def test_the_full_evaluation_at_the_end_of_a_trial_is_no_epoch(
    make_trainer: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`evaluate` after the training has the same `state.epoch` as the last epoch."""
    trainer = make_trainer(SummarizationTrainer, num_train_epochs=1)
    trainer.add_callback(SearchProgress(optuna.create_study(), 1, ["loss"], Writer(tmp_path)))
    trainer.train()
    assert "epoch 1 of 1" in capsys.readouterr().out
    trainer.evaluate()
    assert "of 1" not in capsys.readouterr().out
