"""What a disk refuses is no fault of a trial's values: the run stops, and the trial is repeated."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from final_models import read_json, search, write_recipe
from optuna.trial import TrialState
from programs import run_program, run_well
from safetensors.torch import save_file

from hpo_summarize import SummarizationTrainer
from hpo_summarize.config.schema import SearchSection
from hpo_summarize.errors import RunStopped, storage_failure
from hpo_summarize.study.run import open_study, run_study
from hpo_summarize.study.trials import best_trials
from hpo_summarize.study.user_attrs import FAILURE

NEXT_STEP = "free space there, or make it writable again, and start the same command again"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets this process write no file beyond a number of bytes, as a quota or a full disk does."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 800 KB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def to_full_device(folder: Path) -> None:
    with open("/dev/full", "w") as file:
        file.write("x")


def to_torch(folder: Path) -> None:
    with largest_file(10_000):
        torch.save({"weights": torch.zeros(10_000)}, folder / "weights.pt")


def to_safetensors(folder: Path) -> None:
    with largest_file(10_000):
        save_file({"weights": torch.zeros(10_000)}, folder / "weights.safetensors")


def to_sqlite(folder: Path) -> None:
    with largest_file(10_000):
        optuna.create_study(storage=f"sqlite:///{folder}/study.db")


def to_closed_folder(folder: Path) -> None:
    user = os.geteuid()
    folder.chmod(0o500)
    if user == 0:
        os.seteuid(65534)  # Root may write anywhere.
    try:
        save_file({"weights": torch.zeros(2)}, folder / "weights.safetensors")
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


def to_nowhere(folder: Path) -> None:
    (folder / "missing" / "file").write_text("x")


def to_memory(folder: Path) -> None:
    torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.parametrize(
    "write, reason",
    [
        (to_full_device, "No space left on device (disk)"),
        (to_torch, "a file could not be written to its end (disk)"),
        (to_safetensors, "File too large (disk)"),
        (to_sqlite, "disk I/O error (disk)"),
        (to_closed_folder, "Permission denied (disk)"),
        (to_nowhere, None),
        (to_memory, None),
    ],
)
def test_what_a_disk_refuses_is_known_whatever_library_raises_it(
    write: Callable[[Path], None], reason: str | None, tmp_path: Path
) -> None:
    with pytest.raises(Exception) as direct:  # noqa: B017 - each library has its own.
        write(tmp_path)
    assert storage_failure(direct.value, "disk") == reason
    wrapped = RuntimeError("something else")
    wrapped.__cause__ = direct.value
    assert storage_failure(wrapped, "disk") == reason


def test_a_trial_whose_checkpoint_does_not_fit_is_repeated_with_its_values(
    make_trainer: Any, tmp_path: Path
) -> None:
    trainer, study = (
        make_trainer(SummarizationTrainer, save_strategy="epoch"),
        optuna.create_study(),
    )

    def go_on() -> None:
        trainer.hyperparameter_search(
            lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2)},
            n_trials=2,
            backend="optuna",
            study=study,
        )

    with largest_file(30_000), pytest.raises(RunStopped, match=rf"runs/run-0\); {NEXT_STEP}"):
        go_on()
    assert not list((tmp_path / "runs" / "run-0").glob("checkpoint-*"))
    go_on()
    assert [trial.state.name for trial in study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert study.trials[1].params == study.trials[0].params
    assert not any(FAILURE in trial.user_attrs for trial in study.trials)


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_trial_is_repeated_that_a_full_disk_kept_from_being_put_back(
    kind: str, tmp_path: Path
) -> None:
    file = tmp_path / "study"

    def open_again() -> optuna.Study:
        return open_study(SearchSection(), "full", f"{kind}:///{file}", ["maximize"])

    def objective(trial: optuna.Trial) -> float:
        value = trial.suggest_float("x", 0, 1)
        if os.getpid() != parent:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
            trial.report(value, 1)
        return value

    parent = os.getpid()
    open_again()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            run_study(open_again(), objective, 2)
        except RunStopped as error:
            status = 0 if NEXT_STEP in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (first,) = open_again().trials
    assert first.state == TrialState.RUNNING
    run_study(open_again(), objective, 2)
    assert [trial.state.name for trial in open_again().trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert open_again().trials[1].params == first.params


def test_a_heartbeat_that_a_full_disk_refuses_does_not_end_the_thread_of_heartbeats(
    tmp_path: Path,
) -> None:
    study = open_study(SearchSection(), "s", f"sqlite:///{tmp_path}/study.db", ["maximize"])
    trial, storage = study.ask(), study._storage
    with largest_file(1):
        with pytest.raises(Exception, match="(?i)commit|disk"):
            trial.set_user_attr("x", "y" * 10_000)
        storage.record_heartbeat(trial._trial_id)
    storage.record_heartbeat(trial._trial_id)


def test_a_search_on_a_full_disk_stops_and_goes_on_when_there_is_room(
    checkpoint: Path, small_disk: Path, tmp_path: Path
) -> None:
    command = (write_recipe(tmp_path, checkpoint), f"output_dir={small_disk}")
    stopped = run_program("search", *command)
    assert stopped.status == 1
    assert f"trials/tiny/trial-0); {NEXT_STEP}" in stopped.stderr
    assert "results in" not in stopped.stdout and stopped.stderr.count("\n") == 1
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    run_well("search", *command)
    stats = read_json(small_disk / "study_stats.json")
    assert (stats["n_completed"], stats["n_pruned"], stats["n_failed"]) == (2, 0, 0)
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{small_disk}/study.db")
    assert study.trials[1].params["learning_rate"] == 0.02  # The recipe's own.


@pytest.fixture(scope="module")
def searched(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return search(tmp_path_factory.mktemp("searched") / "s", checkpoint)


def test_a_page_that_does_not_fit_hides_no_result(searched: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(searched.parent / "out", tmp_path / "out"))
    for page in out.glob("*.html"):
        page.unlink()
    (out / "best_params.json").unlink()
    with largest_file(1_000_000):
        done = run_program("search", searched, f"output_dir={out}")
    assert done.status == 1
    best = read_json(out / "best_params.json")
    assert f"best trial {best['best_trial_number']}: rougeL {best['best_value']:.4f}" in done.stdout
    assert f"results in {out}: best_params.json, all_trials.csv\n" in done.stdout
    reason = f"File too large ({out / 'optimization_history.html'})"
    assert f"error: not all results could be written: {reason}" in done.stderr
    assert not list(out.glob(".*.tmp"))
    again = run_well("search", searched, f"output_dir={out}")
    assert f"results in {out}: report.html, best_params.json, all_trials.csv\n" in again.stdout
    assert "(1/2)" not in again.stdout


def test_a_final_training_or_prediction_on_a_full_disk_goes_on_when_there_is_room(
    searched: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(searched.parent / "out", tmp_path / "out"))
    command = (searched, f"output_dir={out}")
    with largest_file(60_000):
        stopped = run_program("train", *command)
    assert (stopped.status, NEXT_STEP in stopped.stderr) == (1, True)
    assert str(out / "training") in stopped.stderr and "Traceback" not in stopped.stderr
    assert not (out / "model").exists()
    run_well("train", *command)
    with largest_file(100):
        stopped = run_program("predict", *command)
    assert (stopped.status, NEXT_STEP in stopped.stderr) == (1, True)
    run_well("predict", *command)
    assert len((out / "predictions.csv").read_text().splitlines()) == 11


def test_the_best_trial_of_a_study_is_not_lost_with_a_result_that_does_not_fit(
    tmp_path: Path,
) -> None:
    study = open_study(SearchSection(), "s", f"sqlite:///{tmp_path}/study.db", ["maximize"])

    def write(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        to_full_device(tmp_path)

    with pytest.raises(RunStopped, match="No space left on device"):
        run_study(study, lambda trial: trial.suggest_float("x", 0, 1), 2, callbacks=[write])
    assert len(best_trials(study)) == 1
