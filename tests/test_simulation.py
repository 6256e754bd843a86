"""The simulated workers run a real study in a real storage."""

from __future__ import annotations

from pathlib import Path

from hpo_summarize.simulation import simulate


def test_simulated_workers_share_the_trials_of_one_study(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'simulation.db'}"
    found = simulate(url, n_workers=3, n_trials=8, trial_seconds=0.5)
    assert found.n_trials == 8
    assert (found.n_duplicates, found.n_unfinished, found.n_failed_workers) == (0, 0, 0)
    assert 0 <= found.lost_seconds <= found.slowest_seconds
    assert found.wall_seconds >= 1.5
