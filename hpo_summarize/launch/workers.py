"""The processes of a launch that run trials of their own, each on its own device."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from hpo_summarize.errors import LaunchError

# What a launcher sets to make its processes one group.
_GROUP_VARIABLES = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
_THREADS = "OMP_NUM_THREADS"
_LAUNCHERS = ("accelerate", "accelerate-launch", "deepspeed", "torchrun")
_LAUNCHER_MODULES = ("accelerate.commands.", "deepspeed.launcher.", "torch.distributed.")
_PR_SET_PDEATHSIG = 1  # Of <sys/prctl.h>.


@dataclass(frozen=True)
class Worker:
    """One process of a launch.

    Attributes:
        number: From 0.
        count: Processes of the launch.
    """

    number: int = 0
    count: int = 1


def is_launched_with_others(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether a launcher has started this process as one of several that can become a group."""
    needed = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return needed <= environment.keys() and int(environment["WORLD_SIZE"]) > 1


def end_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Interrupts this process (SIGTERM) when the launcher that started it ends or is killed.

    It would keep its device while the same command is started again. A parent that is no launcher
    (a shell, nohup, tmux, a scheduler) may end before this process.
    """
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" in environment or _is_launcher(_command_of(parent)):
        end_with_parent(parent)


def end_with_parent(parent: int) -> None:
    """Sends SIGTERM to this process when its parent ends. A no-op where the system is not Linux.

    Args:
        parent: Process id of the parent; if that has ended already, the signal comes at once.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        signal.raise_signal(signal.SIGTERM)


def _is_launcher(command: Sequence[str]) -> bool:
    """Whether a command line is `python [options] LAUNCHER ...`, which that of a console script is.

    The environment does not say so: what `accelerate launch` sets may be inherited or exported.
    """
    python, *words = command or [""]
    program = next((word for word in words if not word.startswith("-")), "")
    is_known = Path(program).name in _LAUNCHERS or program.startswith(_LAUNCHER_MODULES)
    return is_known and "python" in Path(python).name


def separate_workers(
    environment: MutableMapping[str, str] = os.environ,
    count_gpus: Callable[[], int] | None = None,
) -> Worker:
    """Makes this process independent of the others of its launch, with one device of its own.

    To be called before anything asks for a device. No process group is formed then; the workers
    share the storage of the study alone, and the cores of their machine as threads.

    Args:
        environment: Of this process; changed.
        count_gpus: GPUs of this machine. Default: what torch finds.

    Raises:
        LaunchError: More processes were started on this machine than there are GPUs for them.
    """
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1:
        return Worker()
    number, local = int(environment.get("RANK", "0")), int(environment.get("LOCAL_RANK", "0"))
    local_count = int(environment.get("LOCAL_WORLD_SIZE", count))
    if not _user_chose_threads(environment):
        _use_threads(max(1, n_cores() // local_count), environment)
    for name in _GROUP_VARIABLES:
        environment.pop(name, None)
    if devices := _gpus(environment, count_gpus or _count_gpus):
        if local_count > len(devices):
            raise LaunchError(_too_many(local_count, devices))
        environment["CUDA_VISIBLE_DEVICES"] = devices[local]
    return Worker(number, count)


def _gpus(environment: Mapping[str, str], count_gpus: Callable[[], int]) -> list[str]:
    """The GPUs that the processes of this machine may use, as CUDA names them."""
    if environment.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return []
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(count_gpus())]
    return [name.strip() for name in visible.split(",") if name.strip()]


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()  # Asks the driver, and begins nothing on a device.


def _too_many(count: int, devices: Sequence[str]) -> str:
    twice = ",".join(name for name in devices for _ in range(-(-count // len(devices))))
    return (
        f"{count} processes were started on this machine, and there are {len(devices)} GPUs for "
        f"them ({', '.join(devices)}); the others would have none. Start as many as there are "
        f"(--num_processes {len(devices)}), or let them share: CUDA_VISIBLE_DEVICES={twice}"
    )


def launch_note(
    command: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ
) -> str | None:
    """A note for a launcher that was asked for several processes and started only this one.

    `accelerate launch --cpu --num_processes 2` (1.15) does so silently.

    Args:
        command: Command line of the parent process. Default: as the system has it.
        environment: Of this process.
    """
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        return None
    words = " ".join(_command_of(os.getppid()) if command is None else command)
    asked = re.search(r"accelerate\S* .*--num[_-]processes[= ](\d+)", words)
    if asked is None or int(asked[1]) < 2:
        return None
    return (
        f"note     accelerate was asked for {asked[1]} processes and started one, as it does on a "
        f"CPU; {asked[1]} are started there by\n         ACCELERATE_USE_CPU=1 accelerate launch "
        f"--multi_gpu --num_processes {asked[1]} {shlex.join(sys.argv)}"
    )


def _command_of(process: int) -> list[str]:
    try:
        return psutil.Process(process).cmdline()
    except psutil.Error:  # It has ended, or belongs to another user.
        return []


def start_of(process: int) -> float:
    """When a process of this machine started, which a later one of the same id does not share.

    On Linux in clock ticks since the machine started. psutil adds to them the time of that start,
    which changes whenever the clock is set.

    Raises:
        psutil.NoSuchProcess: It has ended.
    """
    if sys.platform != "linux":
        return psutil.Process(process).create_time()
    try:
        stat = Path(f"/proc/{process}/stat").read_text("utf-8", "replace")
    except OSError:
        raise psutil.NoSuchProcess(process) from None
    return float(stat.rpartition(")")[2].split()[19])  # "starttime" of proc_pid_stat(5).


def launch_name() -> str:
    """A name that the processes of one launch on one machine share, and no other launch has."""
    return f"{socket.gethostname()} {os.getppid()} {start_of(os.getppid())}"


def n_cores() -> int:
    """The processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Not on macOS and Windows.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _user_chose_threads(environment: Mapping[str, str]) -> bool:
    """Whether the number of threads is the user's.

    torchrun and `accelerate launch` set 1 for the processes that they start, if it is not set.
    """
    if environment.get(_THREADS, "1") != "1":
        return True
    try:
        return _THREADS in psutil.Process(os.getppid()).environ()
    except (psutil.Error, OSError):  # It cannot be read.
        return False


def _use_threads(count: int, environment: MutableMapping[str, str]) -> None:
    """Sets the threads of torch, be it imported already or not."""
    environment[_THREADS] = str(count)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)
