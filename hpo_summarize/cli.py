"""What the command line programs share: arguments, messages and exit status."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from hpo_summarize.config.loader import load_recipe
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import HpoError, stopping_at_storage_failure
from hpo_summarize.launch.signals import detect_lost_process, interrupt_once
from hpo_summarize.launch.workers import end_with_launcher, is_launched_with_others, launch_note
from hpo_summarize.redact import redact_output, redact_url, remember_process_secrets

_INTERRUPTED = 130
_FIRST_SECONDS = 1  # In which the first process of a launch prints the error that all of them have.
# Read by torch and its OpenMP when they are loaded, which is later.
_BEFORE_TORCH = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # Threads that wait in a loop take the cores from those that work, if other programs want them.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, its overrides and the options that every program has."""
    parser.add_argument("recipe", help="YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="changes to it")
    parser.add_argument("--output_dir", help="folder for everything that is written")
    parser.add_argument(
        "--debug", action="store_true", help="a quick run: 2 trials, 1 epoch, 32 dialogues"
    )


def read_recipe(arguments: argparse.Namespace, search: Sequence[str] = ()) -> Recipe:
    """The recipe of a command line.

    Args:
        arguments: What `add_recipe_arguments` and the program's own options gave.
        search: Names of options that stand for keys of the section `search`.
    """
    given = {f"search.{name}": getattr(arguments, name) for name in search}
    given["output_dir"] = arguments.output_dir
    settings = {key: value for key, value in given.items() if value is not None}
    return load_recipe(arguments.recipe, arguments.overrides, arguments.debug, settings)


def given_words(arguments: argparse.Namespace) -> list[str]:
    """The recipe and the changes to it, as another program takes them; none that has a password."""
    words = [arguments.recipe, *arguments.overrides]
    if arguments.output_dir is not None:
        words += ["--output_dir", arguments.output_dir]
    if arguments.debug:
        words.append("--debug")
    return [word for word in words if redact_url(word) == word]


def command_line(program: str, *words: object) -> str:
    """The shell command for a program that lies beside this one, with the same Python."""
    python, found = sys.executable, shutil.which("python")
    if found and Path(found).parent == Path(python).parent:
        python = "python"
    return shlex.join(map(str, (python, Path(sys.argv[0]).with_name(f"{program}.py"), *words)))


def predict_command(recipe: Recipe, *words: object) -> str:
    """`command_line` for scripts/predict.py, which needs a file where there is no test split."""
    source = ("--input", "DIALOGUES.csv") if recipe.data.test is None else ()
    return command_line("predict", *words, *source)


def run(main: Callable[[], None], kept: str = "every finished trial") -> None:
    """Runs a program; ends it with the exit status and the message of its error.

    An error that all processes of a launch have is printed once, by the main one.

    Args:
        main: The program.
        kept: What an interrupted run does not lose.
    """
    remember_process_secrets(sys.argv[1:], os.environ)
    redact_output()
    interrupt_once()
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"  # A search may leave its group.
    end_with_launcher()
    for name, value in _BEFORE_TORCH.items():
        os.environ.setdefault(name, value)
    try:
        _quiet()
        if note := launch_note():
            print(note, file=sys.stderr)
        with detect_lost_process(), stopping_at_storage_failure():
            main()
    except HpoError as error:
        line = _line_of(error)
        _end_undisturbed()
        if line is not None:
            print(line, file=sys.stderr, flush=True)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        _end_undisturbed()
        if is_first:
            print(
                f"\ninterrupted: {kept} is kept; the same command continues from there",
                file=sys.stderr,
            )
        sys.exit(_INTERRUPTED)


def _end_undisturbed() -> None:
    """A launcher ends this process as soon as another one has ended, and it shall end well."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.flush()


def _line_of(error: HpoError) -> str | None:
    """What this process prints; None where the main one of its launch prints it for all."""
    rank = int(os.environ.get("RANK", "0"))
    if not is_launched_with_others():
        return f"error: {error}"
    if error.shared:
        return f"error: {error}" if rank == 0 else None
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_initialized():
        if rank == 0:
            return f"error: {error}"
        # A recipe that is wrong for all: a launcher ends the others after the first that fails.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_FIRST_SECONDS)
    return f"error: process {rank}: {error}"


def _quiet() -> None:
    """Turns off the libraries' own logs; this package prints its plan, progress and errors."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    import optuna
    from transformers.utils import logging

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
