"""The simulated workers run a real study in a real storage."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from simulation import simulate

from hpo_summarize.errors import SearchFailed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_simulated_workers_share_the_trials_of_one_study(kind: str, tmp_path: Path) -> None:
    url = {"sqlite": "sqlite:///", "journal": "journal://"}[kind] + str(tmp_path / "simulation")
    found = simulate(url, n_workers=3, n_trials=8, trial_seconds=0.5)
    assert found.n_trials == 8
    assert (found.n_duplicates, found.n_unfinished, found.n_failed_workers) == (0, 0, 0)
    assert 0 <= found.lost_seconds <= found.slowest_seconds
    assert found.wall_seconds >= 1.5


@pytest.mark.slow
def test_a_simulation_without_a_finished_trial_says_so(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'simulation'}"
    optuna.create_study(storage=url, study_name="simulation", direction="minimize")
    with pytest.raises(SearchFailed, match="no simulated trial finished.*1 workers failed; fix"):
        simulate(url, n_workers=1, n_trials=1, trial_seconds=0)
