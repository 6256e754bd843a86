"""One process of a group fails alone, while the others wait for it in a collective operation.

They cannot be called back from there, so the launch ends. The process that failed writes the reason
to the storage of the study first.
"""

from __future__ import annotations

import os
import pickle
import sys
from typing import NoReturn

import optuna
from accelerate import PartialState

from hpo_summarize.errors import HpoError, ProcessError
from hpo_summarize.launch.signals import detect_lost_process, is_lost_process
from hpo_summarize.redact import redact_url
from hpo_summarize.study.recovery import fail, requeue_running
from hpo_summarize.training.devices import Sizes, remember
from hpo_summarize.training.trial import failure_reason


class Group:
    """The processes that train the trials of one study together.

    The main process makes it and broadcasts it.

    Args:
        study: The study. The other processes have it pickled: to unpickle it opens its storage,
            which only a process that fails needs.
    """

    def __init__(self, study: optuna.Study | bytes) -> None:
        self._study = study

    def __reduce__(self) -> tuple[type[Group], tuple[bytes]]:
        """Leaves out the sampler and the pruner, which need not be picklable."""
        study = self._opened()
        plain = optuna.load_study(study_name=study.study_name, storage=study._storage)
        return Group, (pickle.dumps(plain),)

    def _opened(self) -> optuna.Study:
        return pickle.loads(self._study) if isinstance(self._study, bytes) else self._study

    def leave(self, number: int, error: Exception, smaller: Sizes | None = None) -> NoReturn:
        """Ends this process after an error that the others do not have.

        The trial counts as failed if its values may be the cause; otherwise it is queued again.

        Args:
            number: Number of the trial.
            error: What this process has raised.
            smaller: Per-device batch sizes to try next, if it ran out of memory.

        Raises:
            ProcessError: Another process is gone; that is the whole error.
        """
        with detect_lost_process():
            if isinstance(error, ProcessError) or is_lost_process(error):
                raise error
        is_setup = isinstance(error, HpoError)  # Of this process, whatever the values are.
        reason = str(error) if is_setup else failure_reason(error)
        fails = not is_setup and smaller is None
        line = (
            f"process {PartialState().process_index}, trial {number}: {reason}. The launch ends "
            f"here; the same command continues with {'the next' if fails else 'this'} trial"
        )
        if smaller is not None:
            line += f", with {smaller[0]} examples at once on each device and more accumulation"
        _print_error(line)
        try:
            study = self._opened()
            if smaller is not None:
                remember(study, smaller)
            if fails:
                fail(study, number, reason)
            else:
                requeue_running(study, study.get_trials(deepcopy=False)[number])
        except Exception as unwritten:
            _print_error(f"the study could not be written to: {redact_url(str(unwritten))}")
        finally:
            sys.stdout.flush()
            # The group would be left first, and that waits for the others.
            os._exit(HpoError.exit_status)


def _print_error(line: str) -> None:
    print(f"error: {line}", file=sys.stderr, flush=True)
