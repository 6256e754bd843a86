"""Several workers on one storage, with real processes and a real PostgreSQL, also when they die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from postgres import Server, running_server
from study_worker import BASELINE

from hpo_summarize.config.schema import SearchSection
from hpo_summarize.study import storage
from hpo_summarize.study.recovery import n_being_requeued, requeue_orphans, this_worker
from hpo_summarize.study.run import open_study, run_study
from hpo_summarize.study.storage import build_storage
from hpo_summarize.study.trials import finished_trials
from hpo_summarize.study.user_attrs import CONTINUES, INTERRUPTED, SURPLUS
from hpo_summarize.study.user_attrs import WORKER as WORKER_NAME

WORKER = str(Path(__file__).with_name("study_worker.py"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SECONDS = 60  # No step takes as long.


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture(params=["sqlite", "journal", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A storage with nothing in it."""
    if request.param == "postgresql":
        name = f"tests_{abs(hash(request.node.name))}"
        return str(request.getfixturevalue("server").new_database(name))
    scheme = {"sqlite": "sqlite:///", "journal": "journal://"}[request.param]
    return f"{scheme}{tmp_path / 'study.file'}"


Processes = Callable[..., list[subprocess.Popen[str]]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Processes]:
    """Starts workers at the same instant; none of them outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(url: str, count: int, n_trials: int, seconds: float = 0, stuck: str = "") -> Any:
        gate = tmp_path / f"gate-{len(started)}"
        command = [sys.executable, WORKER, url, str(n_trials), str(seconds), str(gate), stuck]
        new = [
            subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        started.extend(new)
        wait_for(lambda: len(list(tmp_path.glob(f"{gate.name}.*"))) == count)
        gate.touch()
        return new

    yield run
    for process in started:
        process.kill()
        process.communicate()


def wait_for(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        errors = process.communicate(timeout=SECONDS)[1]
        assert process.returncode == 0, errors


def study_at(url: str) -> optuna.Study:
    return optuna.load_study(study_name="study", storage=build_storage(url))


def assert_whole(study: optuna.Study, n_trials: int) -> None:
    finished = finished_trials(study)
    assert len(finished) == n_trials
    assert not study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING))
    assert len({trial.params["x"] for trial in finished}) == n_trials
    assert study.trials[0].params == BASELINE
    queued = [t for t in study.trials if "fixed_params" in t.system_attrs]
    assert [t.number for t in queued if CONTINUES not in t.user_attrs] == [0]


def test_a_queued_trial_is_started_by_one_of_four_workers(url: str) -> None:
    storages = [build_storage(url) for _ in range(4)]
    study = optuna.create_study(storage=storages[0])
    for number in range(10):
        study.enqueue_trial({"x": number})
        trial_id = study.trials[-1]._trial_id
        barrier, started = threading.Barrier(len(storages)), list[bool]()

        def start(
            one: Any, barrier: Any = barrier, started: Any = started, trial_id: int = trial_id
        ) -> None:
            barrier.wait()
            started.append(one.set_trial_state_values(trial_id, TrialState.RUNNING))

        threads = [threading.Thread(target=start, args=(one,)) for one in storages]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(started) == [False, False, False, True]
        assert study.trials[-1].datetime_start is not None


@pytest.mark.slow
def test_four_workers_that_start_and_resume_at_once_do_exactly_the_wanted_trials(
    url: str, start: Processes
) -> None:
    for n_trials in (8, 16):
        finish(start(url, 4, n_trials))
        assert_whole(study_at(url), n_trials)


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_is_tried_again_once_while_the_others_go_on(
    url: str, start: Processes, tmp_path: Path
) -> None:
    mark = tmp_path / "stuck"
    victim = start(url, 1, 12, stuck=str(mark))[0]
    wait_for(lambda: mark.exists() and mark.read_text())
    others = start(url, 3, 12, seconds=0.1)
    wait_for(lambda: len(finished_trials(study_at(url))) >= 3)
    victim.kill()
    finish(others)
    study = study_at(url)
    assert_whole(study, 12)
    dead = study.trials[int(mark.read_text())]
    assert dead.state == TrialState.FAIL
    heirs = [
        trial
        for trial in study.trials
        if trial.user_attrs.get(CONTINUES) == dead.number and SURPLUS not in trial.user_attrs
    ]
    assert [(heir.params, heir.state.name) for heir in heirs] == [(dead.params, "COMPLETE")]


@pytest.mark.slow
def test_an_orphan_that_four_workers_find_at_once_is_requeued_once(
    url: str, start: Processes, tmp_path: Path
) -> None:
    mark = tmp_path / "stuck"
    victim = start(url, 1, 2, stuck=str(mark))[0]
    wait_for(lambda: mark.exists() and mark.read_text())
    victim.kill()
    victim.wait()
    finish(start(url, 4, 2))
    study = study_at(url)
    assert_whole(study, 2)
    assert [t.user_attrs.get(CONTINUES) for t in finished_trials(study)] == [None, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_the_trial_of_an_interrupted_worker_is_done_by_the_other(
    number: signal.Signals, start: Processes, tmp_path: Path
) -> None:
    url, mark = f"sqlite:///{tmp_path / 'study.db'}", tmp_path / "stuck"
    stopped = start(url, 1, 8, stuck=str(mark))[0]
    wait_for(lambda: mark.exists() and mark.read_text())
    other = start(url, 1, 8, seconds=0.1)
    # A launcher passes on what the terminal has sent already, and the system sends several, too.
    for _ in range(100):
        stopped.send_signal(number)
        time.sleep(0.001)
    errors = stopped.communicate(timeout=SECONDS)[1]
    assert stopped.returncode == 130
    assert "the same command continues from there" in errors
    assert "Traceback" not in errors
    finish(other)
    assert_whole(study_at(url), 8)
    heirs = [t for t in study_at(url).trials if CONTINUES in t.user_attrs]
    assert [t.user_attrs[CONTINUES] for t in heirs] == [int(mark.read_text())]


def test_a_study_outlives_a_restart_of_its_server(start: Processes) -> None:
    with running_server() as own:
        url = own.new_database("restarted")
        study = open_study(SearchSection(), "study", url, ["maximize"], [BASELINE])
        workers = start(url, 2, 10, seconds=0.3)
        wait_for(lambda: len(finished_trials(study)) >= 3)
        before = {trial.number: trial.values for trial in finished_trials(study)}
        own.stop()
        time.sleep(2)
        assert [worker.poll() for worker in workers] == [None, None]
        own.start()
        finish(workers)
        study = study_at(url)
        assert_whole(study, 10)
        assert all(study.trials[number].values == values for number, values in before.items())
        assert not [t for t in study.trials if CONTINUES in t.user_attrs]
        study._storage._backend.engine.dispose()


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_that_is_being_requeued_leaves_no_room_for_another(tmp_path: Path) -> None:
    study = open_study(SearchSection(), "study", f"sqlite:///{tmp_path / 'a.db'}", ["maximize"])
    trial = study.ask()
    trial.set_user_attr(INTERRUPTED, True)
    assert n_being_requeued(study.trials) == 0
    study.tell(trial, state=TrialState.FAIL)
    assert n_being_requeued(study.trials) == 1
    study.enqueue_trial({}, user_attrs={CONTINUES: 0})
    assert n_being_requeued(study.trials) == 0


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_of_another_machine_is_not_taken_for_an_orphan(tmp_path: Path) -> None:
    study = open_study(SearchSection(), "study", f"sqlite:///{tmp_path / 'a.db'}", ["maximize"])
    study.ask().set_user_attr(WORKER_NAME, {**this_worker(), "host": "elsewhere", "started": 0.0})
    study.ask().set_user_attr(WORKER_NAME, {**this_worker(), "started": 0.0})
    assert requeue_orphans(study) == [1]


def test_the_baseline_is_first_also_if_the_worker_that_creates_the_study_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo_summarize.study.run.BASELINE_SECONDS", 0.3)
    url = f"sqlite:///{tmp_path / 'a.db'}"
    optuna.create_study(study_name="study", storage=build_storage(url), direction="maximize")
    study = open_study(SearchSection(), "study", url, ["maximize"], [BASELINE])
    run_study(study, lambda trial: trial.suggest_float("x", 0, 1), 2)
    assert_whole(study, 2)


def test_a_journal_with_half_a_line_at_its_end_is_repaired(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    url = f"journal://{path}"
    study = open_study(SearchSection(), "study", url, ["maximize"])
    run_study(study, lambda trial: trial.suggest_float("x", 0, 1), 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"work')
    run_study(study, lambda trial: trial.suggest_float("x", 0, 1), 3)
    assert path.read_bytes().startswith(whole + b"{")
    assert [json.loads(line) for line in path.read_text().splitlines()]
    assert len(finished_trials(study_at(url))) == 3


def test_the_lock_that_a_killed_process_left_on_a_journal_is_broken_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert storage.JOURNAL_LOCK_SECONDS <= 10
    monkeypatch.setattr(storage, "JOURNAL_LOCK_SECONDS", 3)
    (tmp_path / "study.log.lock").touch()
    before = time.monotonic()
    open_study(SearchSection(), "study", f"journal://{tmp_path / 'study.log'}", ["maximize"])
    assert 2.5 < time.monotonic() - before < 10
    assert not (tmp_path / "study.log.lock").exists()
