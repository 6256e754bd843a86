"""Trials whose worker died are found, whatever it died at, and tried again once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from hpo_summarize.config.schema import SearchSection
from hpo_summarize.errors import HpoError, RunStopped
from hpo_summarize.study import recovery
from hpo_summarize.study.heartbeats import HeartbeatJournal, HeartbeatMonitor, sending_heartbeats
from hpo_summarize.study.recovery import (
    fail,
    requeue_orphans,
    requeue_running,
    this_worker,
    withdraw_duplicates,
)
from hpo_summarize.study.run import open_study, run_study
from hpo_summarize.study.trials import finished_trials
from hpo_summarize.study.user_attrs import (
    CONTINUES,
    ENDED_RUN,
    FAILURE,
    INTERRUPTED,
    SURPLUS,
    WORKER,
)

ELSEWHERE = {"host": "elsewhere", "pid": 1, "started": 0.0}

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")
Open = Callable[[], optuna.Study]


@pytest.fixture(params=["sqlite", "journal"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the study as another worker would."""
    url = {"sqlite": "sqlite:///", "journal": "journal://"}[request.param] + str(tmp_path / "s")
    return lambda: open_study(SearchSection(), "study", url, ["maximize"])


@pytest.fixture
def journal(tmp_path: Path) -> Open:
    url = f"journal://{tmp_path / 'study.log'}"
    return lambda: open_study(SearchSection(), "study", url, ["maximize"])


def draw(trial: optuna.Trial) -> float:
    return trial.suggest_float("x", 0, 1)


def lose(study: optuna.Study, marked: bool) -> dict[str, Any]:
    """Fails a trial as a worker or a heartbeat does, and dies before its values are queued."""
    trial = study.ask()
    draw(trial)
    recovery.set_worker(trial)
    if marked:
        trial.set_user_attr(INTERRUPTED, True)
    study.tell(trial, state=TrialState.FAIL)
    return trial.params


@pytest.mark.parametrize("marked", [True, False])
def test_values_that_a_dead_worker_could_not_queue_are_tried_again_once(
    marked: bool, open_again: Open
) -> None:
    params = lose(open_again(), marked)
    run_study(open_again(), draw, 3)
    study = open_again()
    assert len(finished_trials(study)) == 3
    heirs = [trial for trial in study.trials if trial.user_attrs.get(CONTINUES) == 0]
    assert [(heir.params, heir.state.name) for heir in heirs] == [(params, "COMPLETE")]


def test_two_workers_that_queue_the_same_trial_at_once_leave_one(open_again: Open) -> None:
    study = open_again()
    params = lose(study, True)
    for worker in (study, open_again()):
        worker.enqueue_trial(params, user_attrs={CONTINUES: 0})
        withdraw_duplicates(worker)
    waiting = open_again().get_trials(states=(TrialState.WAITING,))
    assert [trial.number for trial in waiting] == [1]
    run_study(study, draw, 2)
    assert [trial.number for trial in finished_trials(study)] == [1, 3]


def test_a_trial_that_two_workers_have_queued_is_begun_by_one(open_again: Open) -> None:
    study = open_again()
    params = lose(study, True)
    for _ in range(2):
        study.enqueue_trial(params, user_attrs={CONTINUES: 0})
    run_study(study, draw, 2)
    assert [t.number for t in study.trials if SURPLUS in t.user_attrs] == [2]
    assert [trial.number for trial in finished_trials(study)] == [1, 3]


def test_an_error_of_the_set_up_is_not_tried_again_by_itself(open_again: Open) -> None:
    def broken(trial: optuna.Trial) -> float:
        draw(trial)
        raise HpoError("the set-up of postgresql://me:secret@db is wrong")

    with pytest.raises(HpoError, match="is wrong"):
        run_study(open_again(), broken, 2)
    run_study(open_again(), draw, 2)
    trials = open_again().trials
    assert [trial.state.name for trial in trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert not [trial for trial in trials if CONTINUES in trial.user_attrs]
    assert trials[0].user_attrs[ENDED_RUN].startswith("the set-up of postgresql://me:***@db")


@pytest.mark.parametrize(("directions", "state"), [(1, "PRUNED"), (2, "FAIL")])
def test_a_trial_that_another_process_has_broken_counts_and_is_not_tried_again(
    directions: int, state: str, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 's'}"
    study = open_study(SearchSection(), "study", url, directions * ["maximize"])
    recovery.set_worker(study.ask())
    fail(study, 0, "RuntimeError: broken")
    fail(study, 0, "it comes too late")
    (trial,) = study.trials
    assert (trial.state.name, trial.user_attrs[FAILURE]) == (state, "RuntimeError: broken")
    assert len(finished_trials(study)) == 1
    assert requeue_orphans(study) == []
    assert len(study.trials) == 1


@pytest.mark.slow
@pytest.mark.parametrize("counted", [True, False])
def test_a_run_stops_also_if_another_process_of_its_group_has_ended_the_trial(
    counted: bool, open_again: Open
) -> None:
    def objective(trial: optuna.Trial) -> float:
        draw(trial)
        other = open_again()
        if counted:
            fail(other, trial.number, "RuntimeError: broken")
        else:
            requeue_running(other, other.trials[trial.number])
        raise RunStopped("another process is gone")

    with pytest.raises(RunStopped, match="another process is gone"):
        run_study(open_again(), objective, 3)
    states = [trial.state.name for trial in open_again().trials]
    assert states == (["PRUNED"] if counted else ["FAIL", "WAITING"])


def files_of(study: optuna.Study) -> list[Path]:
    assert isinstance(study._storage, HeartbeatJournal)
    return sorted(study._storage.folder.glob("*"))


@pytest.mark.slow
def test_a_trial_without_heartbeats_of_another_machine_is_requeued_in_a_run(
    open_again: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo_summarize.study.heartbeats.GRACE_SECONDS", 2)
    trial = open_again().ask()
    draw(trial)
    trial.set_user_attr(WORKER, ELSEWHERE)
    run_study(open_again(), draw, 2)
    trials = open_again().trials
    assert [t.state.name for t in trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert trials[2].params == trials[0].params
    assert trials[2].user_attrs[CONTINUES] == 0


@pytest.mark.slow
def test_a_worker_at_a_journal_sends_heartbeats_until_it_ends(
    journal: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo_summarize.study.heartbeats.HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr("hpo_summarize.study.heartbeats.GRACE_SECONDS", 0.5)
    study, other, monitor = journal(), {**this_worker(), "host": "here"}, HeartbeatMonitor()
    trial = study.ask()
    trial.set_user_attr(WORKER, other)
    with sending_heartbeats(study, other):
        for _ in range(5):
            assert requeue_orphans(journal(), monitor) == []
            time.sleep(0.3)
        assert files_of(study)
    assert requeue_orphans(journal(), monitor) == []
    time.sleep(0.6)
    assert requeue_orphans(journal(), monitor) == [0]


def test_a_worker_that_ends_leaves_no_file(journal: Open) -> None:
    study = journal()
    run_study(study, draw, 2)
    assert files_of(study) == []
