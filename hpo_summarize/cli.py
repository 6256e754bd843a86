"""What the command line programs share: arguments, messages and exit status."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable, Sequence

from hpo_summarize.errors import HpoError
from hpo_summarize.recipe import Recipe, load_recipe

_INTERRUPTED = 130


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
    overrides = list(arguments.overrides)
    given = {f"search.{name}": getattr(arguments, name) for name in search}
    given["output_dir"] = arguments.output_dir
    settings = {key: value for key, value in given.items() if value is not None}
    return load_recipe(arguments.recipe, overrides, arguments.debug, settings)


def run(main: Callable[[], None], kept: str = "every finished trial") -> None:
    """Runs a program; ends it with the exit status and the message that its errors call for.

    Args:
        main: The program.
        kept: What an interrupted run does not lose.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    _quiet()
    try:
        main()
    except HpoError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except KeyboardInterrupt:
        sys.stdout.flush()
        print(
            f"\ninterrupted: {kept} is kept; the same command goes on from there",
            file=sys.stderr,
        )
        sys.exit(_INTERRUPTED)


def _interrupt(number: int, frame: object) -> None:
    """Ends a run that a scheduler stops (Slurm, Kubernetes) as Ctrl-C does."""
    raise KeyboardInterrupt


def _quiet() -> None:
    """Silences the chatter of the libraries; our own lines say what happens."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    import optuna
    from transformers.utils import logging

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
