"""Several processes of one launch: their devices, their one writer, and a real launch of two."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pandas as pd
import pytest
import torch
from filelock import FileLock
from search_process import SEARCH, end_of, start_group

from hpo_summarize.errors import LaunchError
from hpo_summarize.launch.workers import Worker, launch_note, n_cores, separate_workers
from hpo_summarize.launch.writer import Writer

LAUNCH = {"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}

CORES = n_cores()


@pytest.fixture(autouse=True)
def _threads_of_the_tests() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_single_process_keeps_its_environment() -> None:
    environment = {"WORLD_SIZE": "1", "RANK": "0", "PATH": "/bin"}
    assert separate_workers(environment) == Worker(0, 1)
    assert environment == {"WORLD_SIZE": "1", "RANK": "0", "PATH": "/bin"}
    assert separate_workers({}) == Worker(0, 1)


def test_a_process_of_a_launch_leaves_its_group_and_keeps_the_rest() -> None:
    environment = {**LAUNCH, "PATH": "/bin", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "3"}
    assert separate_workers(environment, lambda: 4) == Worker(2, 4)
    assert environment == {"PATH": "/bin", "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize(
    ("given", "gpus", "device"),
    [
        (None, 4, "2"),
        (None, 0, None),
        ("", 4, ""),
        ("4,5,6,7", 8, "6"),
        ("4, 5, 6, 7", 8, "6"),
        ("0,0,1,1", 2, "1"),
        ("GPU-ab,GPU-cd,GPU-ef,GPU-gh", 4, "GPU-ef"),
    ],
)
def test_each_process_gets_one_of_the_devices_that_are_given(
    given: str | None, gpus: int, device: str | None
) -> None:
    environment = dict(LAUNCH)
    if given is not None:
        environment["CUDA_VISIBLE_DEVICES"] = given
    separate_workers(environment, lambda: gpus)
    assert environment.get("CUDA_VISIBLE_DEVICES") == device


@pytest.mark.parametrize(
    ("given", "gpus", "shared"),
    [(None, 3, "0,0,1,1,2,2"), ("3,1", 8, "3,3,1,1"), ("5", 8, "5,5,5,5")],
)
def test_more_processes_than_gpus_are_refused_with_what_to_do(
    given: str | None, gpus: int, shared: str
) -> None:
    environment = dict(LAUNCH)
    if given is not None:
        environment["CUDA_VISIBLE_DEVICES"] = given
    n_gpus = len(set(shared.split(",")))
    expected = f"4 processes .* {n_gpus} GPUs .*--num_processes {n_gpus}.*_DEVICES={shared}$"
    with pytest.raises(LaunchError, match=expected) as error:
        separate_workers(environment, lambda: gpus)
    assert error.value.exit_status == 2
    # What the message names works.
    assert separate_workers({**LAUNCH, "CUDA_VISIBLE_DEVICES": shared}) == Worker(2, 4)


def test_the_processes_of_another_machine_do_not_count() -> None:
    environment = {**LAUNCH, "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    assert separate_workers(environment, lambda: 2) == Worker(2, 4)
    assert environment["CUDA_VISIBLE_DEVICES"] == "0"


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        ("python /bin/accelerate launch --cpu --num_processes 2 scripts/search.py r.yaml", "2"),
        ("python -m accelerate.commands.launch --num-processes=16 scripts/search.py", "16"),
        ("python /bin/accelerate launch --num_processes 1 scripts/search.py r.yaml", None),
        ("python /bin/accelerate launch scripts/search.py r.yaml", None),
        ("bash run.sh --num_processes 2", None),
    ],
)
def test_a_launcher_that_starts_fewer_than_it_was_asked_for_is_noticed(
    command: str, asked: str | None
) -> None:
    note = launch_note(command.split(), {})
    assert (note is None) == (asked is None)
    assert note is None or f"--multi_gpu --num_processes {asked} " in note
    assert launch_note(command.split(), {"WORLD_SIZE": "2"}) is None


NOTER = """
import os, sys
from hpo_summarize.cli import run
run(lambda: print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules))
"""


@pytest.mark.slow
def test_accelerate_starts_one_process_on_a_cpu_and_the_user_is_told(tmp_path: Path) -> None:
    script = tmp_path / "noter.py"
    script.write_text(NOTER)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    done = subprocess.run(
        [*launch, str(script), "a b"], capture_output=True, text=True, env=environment, timeout=120
    )
    command = f"--multi_gpu --num_processes 2 {script} 'a b'"
    assert done.stderr.splitlines()[-1].endswith(command)
    assert done.stderr.count("asked for 2 processes and started one") == 1
    assert done.stdout.splitlines()[-1] == "PASSIVE False"  # Torch comes later and reads it.


STOPPED = """
import os, signal, sys

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers":
            os.kill(os.getpid(), signal.SIGTERM)

from hpo_summarize.cli import run
sys.meta_path.insert(0, Stop())
run(lambda: print("ran"))
"""


def test_a_program_that_is_stopped_while_it_starts_ends_like_any_other() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr and "the same command continues" in done.stderr


CHILD = """
import sys, time
from pathlib import Path
from hpo_summarize.launch.workers import end_with_launcher
end_with_launcher()
Path(sys.argv[1]).write_text("ready")
time.sleep(1.5)
Path(sys.argv[1]).write_text("done")
"""
MIDDLE = "import subprocess, sys, time; subprocess.Popen(sys.argv[2:]); time.sleep(0.8)"


@pytest.mark.parametrize(
    "parent", [["sh", "-c", '"$@" & sleep 0.8', "accelerate"], [sys.executable, "-c", MIDDLE, "x"]]
)
def test_a_process_outlives_a_parent_that_is_no_launcher(parent: list[str], tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    exported = {"ACCELERATE_USE_CPU": "1", "ACCELERATE_MIXED_PRECISION": "no"}
    child = [sys.executable, "-c", CHILD, str(mark)]
    subprocess.run([*parent, *child], env={**os.environ, **exported}, check=True)
    assert mark.read_text() == "ready"
    deadline = time.monotonic() + 20
    while mark.read_text() != "done" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert mark.read_text() == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of the end of a parent")
def test_a_process_ends_whose_parent_died_while_it_started() -> None:
    gone = "from hpo_summarize.launch.workers import end_with_parent; end_with_parent(2**22 + 1)"
    assert subprocess.run([sys.executable, "-c", gone]).returncode == -signal.SIGTERM


THREADS = """
import sys
if "before" in sys.argv:
    import torch
from hpo_summarize.launch.workers import separate_workers
separate_workers()
import torch
print(f"threads {torch.get_num_threads()}\\n", end="")
"""
PAIR = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}


def threads_of_a_worker(order: str, launcher: dict[str, str], process: dict[str, str]) -> int:
    """Threads of torch in a worker.

    Args:
        order: Whether torch is imported "before" its cores are shared out, or "after".
        launcher: Variables that the launching process was started with.
        process: Variables that it gives to the worker.
    """
    launch = f"""
import os, subprocess, sys
environment = {{**os.environ, **{process!r}}}
subprocess.run([sys.executable, "-c", {THREADS!r}, {order!r}], env=environment, check=True)
"""
    plain = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", launch]
    said = subprocess.check_output(command, env={**plain, **launcher}, text=True)
    return int(said.removeprefix("threads "))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "launcher", "process", "threads"),
    [
        ("after", {}, PAIR, max(1, CORES // 2)),
        # Two machines with a worker each; the launcher has set one thread of its own accord.
        ("before", {}, {**PAIR, "LOCAL_WORLD_SIZE": "1", "OMP_NUM_THREADS": "1"}, CORES),
        # What the user has set stays, for the launcher or through its options.
        ("after", {"OMP_NUM_THREADS": "1"}, {**PAIR, "LOCAL_WORLD_SIZE": "1"}, 1),
        ("before", {}, {**PAIR, "OMP_NUM_THREADS": str(CORES)}, CORES),
    ],
)
def test_the_workers_of_a_machine_share_its_cores_as_threads_of_torch(
    order: str, launcher: dict[str, str], process: dict[str, str], threads: int
) -> None:
    assert threads_of_a_worker(order, launcher, process) == threads


@pytest.mark.slow
def test_the_processes_of_a_real_launch_share_the_cores(tmp_path: Path) -> None:
    script = tmp_path / "threads.py"
    script.write_text(THREADS)
    plain = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    said = subprocess.check_output(
        [*launcher, "--num_processes", "2", "--main_process_port", "0", str(script)],
        env={**plain, "ACCELERATE_USE_CPU": "1"},
        text=True,
    )
    assert said.count(f"threads {max(1, CORES // 2)}\n") == 2


HOLDER = """
import sys
from pathlib import Path
from hpo_summarize.launch.writer import Writer
writer = Writer(Path(sys.argv[1]))
print(writer.is_here(), writer.is_here(), flush=True)
sys.stdin.read()
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_process_is_the_writer_and_the_next_one_becomes_it_when_that_is_killed(
    tmp_path: Path,
) -> None:
    first = hold(tmp_path)
    assert said(first) == "True True"
    second = hold(tmp_path)
    assert said(second) == "False False"
    here = Writer(tmp_path)
    assert not here.is_here()
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert here.is_here()
    second.communicate()
    assert said_by_another(tmp_path) == "False False"


def said_by_another(folder: Path) -> str:
    process = hold(folder)
    return process.communicate()[0].strip()


def test_a_turn_that_never_comes_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpo_summarize.launch.writer.TURN_SECONDS", 0.1)
    held = FileLock(tmp_path / ".turn.lock")
    held.acquire()
    for worker in (Worker(0, 2), Worker(1, 2)):
        with Writer(tmp_path, worker=worker).once("a line") as is_new:
            assert is_new == (worker.number == 0)
    held.release()


def test_what_one_worker_of_a_launch_has_done_is_new_to_the_next_launch(tmp_path: Path) -> None:
    for worker, expected in ((Worker(0, 2), True), (Worker(1, 2), False), (Worker(), True)):
        with Writer(tmp_path, worker=worker).once("the result") as is_new:
            assert is_new == expected
    with Writer(tmp_path, eligible=False).once("another") as is_new:
        assert not is_new


RECIPE = """
model: {{name: {checkpoint}}}
lora: {{r: 4, alpha: 8}}
data: {{train: {csv}, validation_fraction: 0.25, max_dialogue_tokens: 100, max_summary_tokens: 30}}
training: {{num_epochs: 1, batch_size: 8, learning_rate: 1e-3}}
generation: {{num_beams: 1, max_new_tokens: 16}}
search: {{n_trials: 7, keep_trials: 2, pruner: null}}
space: {{learning_rate: {{type: float, low: 1e-4, high: 1e-2, log: true}}}}
output_dir: {output}
"""


def run_two(
    checkpoint: Path, csv_path: Path, tmp_path: Path, *options: str
) -> tuple[list[int | None], str, optuna.Study, Path]:
    """Runs two workers of one launch; their exit statuses, output, study and folder."""
    out, recipe, log = tmp_path / "out", tmp_path / "two.yaml", tmp_path / "log"
    recipe.write_text(RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=out))
    ends = end_of(start_group(SEARCH, log, str(recipe), *options))
    study = optuna.load_study(study_name="two", storage=f"sqlite:///{out / 'study.db'}")
    return ends, log.read_text(), study, out


def printed_trials(output: str) -> list[int]:
    return sorted(int(number) for number in re.findall(r"^trial +(\d+) \(", output, re.MULTILINE))


@pytest.mark.slow
def test_two_processes_of_a_launch_share_the_trials_and_write_whole_files(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    out, recipe = tmp_path / "out", tmp_path / "two.yaml"
    recipe.write_text(RECIPE.format(checkpoint=checkpoint, csv=csv_path, output=out))
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--multi_gpu"]
    options = ["--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [*launcher, *options, str(SEARCH), str(recipe)],
        capture_output=True,
        text=True,
        env={**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"},
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    study = optuna.load_study(study_name="two", storage=f"sqlite:///{out / 'study.db'}")
    finished = [trial for trial in study.trials if trial.state.is_finished() and trial.values]
    assert len(finished) == 7
    assert not [t for t in study.trials if not t.state.is_finished()]
    assert len({trial.user_attrs["worker"]["pid"] for trial in finished}) == 2
    assert len({trial.params["learning_rate"] for trial in finished}) == 7
    assert list(pd.read_csv(out / "all_trials.csv")["number"]) == [t.number for t in finished]
    assert json.loads((out / "study_stats.json").read_text())["n_trials"] == 7
    assert json.loads((out / "best_params.json").read_text())["best_value"] == study.best_value
    assert "</html>" in (out / "report.html").read_text()
    assert "workers  2" in done.stdout
    assert printed_trials(done.stdout) == [trial.number for trial in finished]
    assert done.stdout.count("results in ") == done.stdout.count("best trial ") == 1


@pytest.mark.slow
def test_what_ends_after_the_timeout_and_after_the_writer_is_printed_and_written_too(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    # One worker has the short trial 0 and is over at once; the other's lasts longer.
    longer = "space.num_epochs={type: int, low: 1, high: 25}"
    ends, output, study, out = run_two(checkpoint, csv_path, tmp_path, "--timeout", "0.5", longer)
    assert ends == [0, 0], output
    finished = [trial.number for trial in study.trials if trial.state.is_finished()]
    assert len(finished) >= 2
    assert printed_trials(output) == finished
    assert list(pd.read_csv(out / "all_trials.csv")["number"]) == finished
    stats = json.loads((out / "study_stats.json").read_text())
    assert (stats["n_trials"], stats["n_running"]) == (len(finished), 0)
    last = max(study.trials, key=lambda trial: trial.datetime_complete)
    assert (out / "report.html").stat().st_mtime >= last.datetime_complete.timestamp()


NAN = "the training loss is not a finite number"
FIXED = ("search.sampler={name: random, seed: 1}", "training.learning_rate=1e30")
SPACE = "space={weight_decay: {type: float, low: 0.0, high: 0.1}}"


@pytest.mark.slow
def test_three_failures_in_a_row_end_both_workers_with_the_reason(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    ends, output, study, out = run_two(checkpoint, csv_path, tmp_path, *FIXED, SPACE)
    assert ends == [1, 1], output
    assert output.count(f"3 trials in a row failed with the same reason: {NAN}") == 2
    reasons = [t.user_attrs["failure"] for t in study.trials if "failure" in t.user_attrs]
    assert 3 <= len(reasons) <= 5
    assert set(reasons) == {NAN}
    assert not [t for t in study.trials if t.state.name == "RUNNING"]
    assert json.loads((out / "study_stats.json").read_text())["failures"] == {NAN: len(reasons)}
    assert printed_trials(output) == [t.number for t in study.trials if "failure" in t.user_attrs]


@pytest.mark.slow
def test_a_loss_that_is_not_a_number_ends_one_trial_of_two_workers(
    checkpoint: Path, csv_path: Path, tmp_path: Path
) -> None:
    # Trial 0 fails: the recipe's own learning rate is not among those that are searched.
    rates = "space={learning_rate: {type: categorical, choices: [1e-3, 1e30]}}"
    options = (rates, "training.learning_rate=1e30", "search.sampler={name: brute_force, seed: 1}")
    ends, output, study, _ = run_two(checkpoint, csv_path, tmp_path, *options, "--n_trials", "2")
    assert ends == [0, 0], output
    fates = {t.params["learning_rate"]: t.user_attrs.get("failure") for t in study.trials[:2]}
    assert fates == {1e30: NAN, 1e-3: None}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk too small for one checkpoint, mounted where the trials are written."""
    folder = tmp_path / "out" / "trials"
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_stops_both_workers_and_requeues_their_trials(
    checkpoint: Path, csv_path: Path, tmp_path: Path, small_disk: Path
) -> None:
    ends, output, study, out = run_two(checkpoint, csv_path, tmp_path)
    assert ends == [1, 1], output
    assert len(re.findall("error: .*(?:[Nn]o space left|not be written to its end).*", output)) == 2
    states = [t.state.name for t in study.trials]
    assert set(states) == {"FAIL", "WAITING"} and states.count("WAITING") >= 2
    assert not [t for t in study.trials if "failure" in t.user_attrs]
    assert "</html>" in (out / "report.html").read_text()
