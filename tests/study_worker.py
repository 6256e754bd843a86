"""One worker of a study, as a process: study_worker.py URL N_TRIALS [SECONDS [GATE [STUCK]]].

Its trials are cheap: a value is drawn, and SECONDS are slept. It waits for the file GATE first, so
that several start at the same instant, and with STUCK its second trial lasts for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import optuna

from hpo_summarize.config.schema import SearchSection
from hpo_summarize.study.run import open_study, run_study

BASELINE = {"x": 0.125}


def main() -> None:
    """Waits for the gate, opens the study and works at it."""
    url, n_trials, seconds, gate, stuck = (*sys.argv[1:], *["0", "", ""][len(sys.argv) - 3 :])
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if gate:
        Path(f"{gate}.{os.getpid()}").touch()
    while gate and not Path(gate).exists():
        time.sleep(0.002)
    mine = []

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0.0, 1.0)
        mine.append(trial.number)
        if stuck and len(mine) == 2:
            Path(stuck).write_text(str(trial.number))
            signal.pause()
        time.sleep(float(seconds))
        return value

    study = open_study(SearchSection(), "study", url, ["maximize"], [BASELINE])
    run_study(study, objective, int(n_trials))


def main_as_a_program() -> None:
    """With the signals and messages of the command line; it takes longer to start."""
    from hpo_summarize.cli import run

    run(main)


if __name__ == "__main__":
    main_as_a_program() if sys.argv[5:] and sys.argv[5] else main()
