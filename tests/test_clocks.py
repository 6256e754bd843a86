"""No clock decides who lives or how long a trial took: clocks are set, and two machines differ."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy
from postgres import Server, running_server

from hpo_summarize.config.schema import SearchSection
from hpo_summarize.launch.writer import Writer
from hpo_summarize.reporting.outcome import read_study
from hpo_summarize.reporting.plots import copy_study
from hpo_summarize.reporting.progress import SearchProgress
from hpo_summarize.reporting.summary import describe_study, list_trials
from hpo_summarize.study import heartbeats, recovery
from hpo_summarize.study.heartbeats import GRACE_SECONDS, HeartbeatJournal, HeartbeatMonitor
from hpo_summarize.study.recovery import requeue_orphans, this_worker
from hpo_summarize.study.run import open_study, run_study
from hpo_summarize.study.trials import seconds_of
from hpo_summarize.study.user_attrs import CONTINUES, WORKER

ELSEWHERE = {"host": "elsewhere", "pid": 1, "started": 0.0}
ZONES = ("KST-9", "EST5")  # 14 hours apart, in the form that needs no data of time zones.
HOUR = 3600

pytestmark = pytest.mark.filterwarnings("ignore:Heartbeat of storage")
Open = Callable[[], optuna.Study]
Beat = Callable[[float], None]


@pytest.fixture
def sqlite(tmp_path: Path) -> optuna.Study:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    return open_study(SearchSection(), "study", url, ["maximize"])


def set_back(study: optuna.Study, hours: int) -> None:
    """As if all trials so far had begun before the clock was set back; negative: set forward."""
    backend = study._storage._backend  # type: ignore[attr-defined]
    later = f"datetime(datetime_start, '{hours} hours')"
    with backend.engine.begin() as connection:
        connection.execute(sqlalchemy.text(f"UPDATE trials SET datetime_start = {later}"))


@pytest.fixture(params=["sqlite", "journal"])
def open_again(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    """Opens the study as another worker would."""
    url = {"sqlite": "sqlite:///", "journal": "journal://"}[request.param] + str(tmp_path / "s")
    return lambda: open_study(SearchSection(), "study", url, ["maximize"])


class OwnClock:
    """The monotonic clock of this process, which a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> OwnClock:
    clock = OwnClock()
    monkeypatch.setattr(heartbeats, "time", clock)
    return clock


def beat_of(study: optuna.Study, trial: optuna.Trial, worker: dict[str, Any]) -> Beat:
    """Sends heartbeats of a worker whose clock, or the storage's, is some seconds off."""
    if isinstance(study._storage, HeartbeatJournal):
        journal = study._storage
        journal.folder.mkdir(exist_ok=True)

        def touch(off: float) -> None:
            journal.file_of(worker).touch()
            os.utime(journal.file_of(worker), (time.time() + off, time.time() + off))

        return touch
    backend = study._storage._backend  # type: ignore[attr-defined]
    backend.record_heartbeat(trial._trial_id)

    def write(off: float) -> None:
        change = f"UPDATE trial_heartbeats SET heartbeat = datetime('now', '{off} seconds')"
        with backend.engine.begin() as connection:
            connection.execute(sqlalchemy.text(change))

    return write


@pytest.mark.parametrize("off", [-3 * HOUR, 3 * HOUR])
def test_a_live_worker_of_this_machine_keeps_its_trial_whatever_its_clock(
    off: float, open_again: Open
) -> None:
    study = open_again()
    trial = study.ask()
    recovery.set_worker(trial)
    beat_of(study, trial, this_worker())(off)
    other = open_again()
    other.optimize(lambda trial: 0.5, n_trials=1)  # Optuna looks for stale trials, too.
    assert requeue_orphans(other) == []
    assert [trial.state.name for trial in other.trials] == ["RUNNING", "COMPLETE"]


def test_a_worker_elsewhere_is_dead_after_the_grace_period_without_a_heartbeat(
    open_again: Open, clock: OwnClock
) -> None:
    study, monitor = open_again(), HeartbeatMonitor()
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr(WORKER, ELSEWHERE)
    beat = beat_of(study, trial, ELSEWHERE)
    for off in (-9 * HOUR, 0, 9 * HOUR, -8 * HOUR):
        beat(off)
        assert requeue_orphans(open_again(), monitor) == []
        clock.now += GRACE_SECONDS
        assert requeue_orphans(open_again(), monitor) == []
    clock.now += 1
    assert requeue_orphans(open_again(), monitor) == [0]
    first, second = open_again().trials
    assert second.system_attrs["fixed_params"] == first.params
    assert (first.state.name, second.user_attrs[CONTINUES]) == ("FAIL", 0)


def test_a_worker_elsewhere_without_any_heartbeat_has_the_grace_period_too(
    open_again: Open, clock: OwnClock
) -> None:
    study, monitor = open_again(), HeartbeatMonitor()
    study.ask().set_user_attr(WORKER, ELSEWHERE)
    assert requeue_orphans(study, monitor) == []
    clock.now += GRACE_SECONDS + 1
    assert requeue_orphans(study, monitor) == [0]


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_trial_just_begun_by_a_worker_with_another_clock_is_not_requeued(
    hours: int, sqlite: optuna.Study, clock: OwnClock
) -> None:
    monitor = HeartbeatMonitor()
    sqlite.ask()  # It has no worker yet.
    set_back(sqlite, hours)
    assert requeue_orphans(sqlite, monitor) == []
    clock.now += 31
    assert requeue_orphans(sqlite, monitor) == [0]


def test_a_process_is_the_same_one_after_the_clock_was_set(
    open_again: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_again()
    recovery.set_worker(study.ask())
    if sys.platform == "linux":  # It adds this time to the age of a process.
        booted = psutil.boot_time()
        monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3 * HOUR)
    assert requeue_orphans(study) == []


def test_durations_are_those_of_a_clock_that_nobody_sets(
    sqlite: optuna.Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    progress = SearchProgress(sqlite, 3, ["rougeL"], Writer(tmp_path))

    def objective(trial: optuna.Trial) -> float:
        trial.set_user_attr("best_epoch", 1.0)
        set_back(sqlite, (3, 0, -6)[trial.number])
        if trial.number == 2:
            trial.report(0.5, 1)
            raise optuna.TrialPruned
        return 0.5

    run_study(sqlite, objective, 3, callbacks=[progress.on_trial_end])
    trials = read_study(sqlite).trials
    by_optuna = [trial.duration.total_seconds() / HOUR for trial in trials if trial.duration]
    assert [round(hours) for hours in by_optuna] == [-3, 0, 6]
    assert all(0 < (seconds_of(trial) or 0) < HOUR for trial in trials)
    assert 0 < describe_study(read_study(sqlite))["total_seconds"] < HOUR
    header, *rows = (line.split(",") for line in list_trials(read_study(sqlite)).splitlines())
    column = header.index("duration_seconds")
    assert all(0 < float(row[column]) < HOUR for row in rows)
    assert capsys.readouterr().out.count("  took 0:00:0") == 3
    drawn = copy_study(read_study(sqlite), [0]).trials
    assert all(0 < trial.duration.total_seconds() < HOUR for trial in drawn if trial.duration)


def test_the_duration_of_a_trial_that_was_cut_off_is_never_negative(sqlite: optuna.Study) -> None:
    trial = sqlite.ask()
    assert seconds_of(sqlite.trials[0]) is None
    set_back(sqlite, 3)
    sqlite.tell(trial, state=optuna.trial.TrialState.FAIL)
    assert seconds_of(sqlite.trials[0]) == 0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.mark.slow
def test_workers_whose_sessions_have_other_time_zones_leave_each_other_their_trials(
    server: Server,
) -> None:
    url = server.new_database("zones")
    command = [sys.executable, str(Path(__file__).with_name("study_worker.py")), url, "10", "0.3"]
    workers = [
        subprocess.Popen(command, env={**os.environ, "TZ": zone, "PGTZ": zone}) for zone in ZONES
    ]
    assert [worker.wait(60) for worker in workers] == [0, 0]
    study = optuna.load_study(study_name="study", storage=url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 10
    assert len({trial.user_attrs[WORKER]["pid"] for trial in study.trials}) == 2
