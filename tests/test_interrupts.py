"""One interrupt comes as several signals, is raised once, and is not lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from hpo_summarize.config.schema import SearchSection
from hpo_summarize.launch import signals
from hpo_summarize.launch.signals import DeferredInterrupt
from hpo_summarize.study.run import open_study, run_study

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _both_signals_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    monkeypatch.setattr(signals, "SAME_SECONDS", 0.5)


class Destroyed:
    """Is interrupted where Python drops what is raised."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_destructor_has_swallowed_still_ends_the_trial(tmp_path: Path) -> None:
    study = open_study(SearchSection(), "study", f"sqlite:///{tmp_path / 'a.db'}", ["maximize"])

    def objective(trial: optuna.Trial) -> float:
        Destroyed()
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            time.sleep(0.01)
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        run_study(study, objective, 2)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


@pytest.mark.parametrize("second", SIGNALS, ids=lambda number: number.name)
def test_what_an_interrupt_began_is_cut_off_by_a_later_one_alone(second: signal.Signals) -> None:
    steps = []
    with pytest.raises(KeyboardInterrupt), DeferredInterrupt() as interrupt:
        try:
            with interrupt.allowed():
                signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(second)
            steps.append("the same interrupt")
            time.sleep(0.6)
            signal.raise_signal(second)
            steps.append("never comes here")
    assert steps == ["the same interrupt"]


PROGRAM = """
import os, signal, time
from hpo_summarize.cli import run

def main():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        print("written", flush=True)

run(main)
"""


def test_a_repeated_signal_does_not_cut_off_the_end_of_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "written\n")
    assert "Traceback" not in done.stderr and "the same command continues" in done.stderr


LOSING = """
import signal, time
from hpo_summarize.cli import run

class Part:
    def __del__(self):
        signal.raise_signal(signal.{name})

def main():
    Part()
    time.sleep(60)

run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_program_ends_where_a_destructor_has_swallowed_the_interrupt(
    number: signal.Signals,
) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", LOSING.format(name=number.name)], capture_output=True, text=True
    )
    assert done.returncode == 130 and time.monotonic() - start < 50
    assert done.stderr.startswith("\ninterrupted: ") and done.stderr.count("\n") == 2
