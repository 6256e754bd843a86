"""Several processes that train one trial after the other together: one leads, the others follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna

from hpo_summarize.distributed import is_lost_peer, on_main
from hpo_summarize.errors import HpoError
from hpo_summarize.trainer.group_failure import Failure, Group
from hpo_summarize.trainer.one_trial import TrialTrainer


class GroupTrainer(TrialTrainer):
    """Trains the trials of a search on every process of a group."""

    @contextmanager
    def _leading_the_group(self, study: optuna.Study) -> Iterator[None]:
        """Tells the processes that follow when there is no trial any more."""
        if self.args.world_size == 1:
            yield
            return
        self._group = Group(self.args.process_index, study)
        with self._group.listening():
            try:
                yield
            except KeyboardInterrupt:
                raise  # They are interrupted, too, and listen no more.
            except Exception:
                self.dismiss_group()
                raise
            else:
                self.dismiss_group()

    @staticmethod
    def dismiss_group() -> None:
        """Tells the processes that follow the main one that it has nothing more for them."""
        try:
            on_main(lambda: None)
        except RuntimeError as error:
            if not is_lost_peer(error):  # Who is gone already need not be told.
                raise

    def follow(self) -> None:
        """Trains the trials that the main process of the group runs, until it has no more.

        What every other process does while the main one is in `hyperparameter_search`.
        """
        self._group, number = Group(self.args.process_index), 0
        while True:
            with self._leaving_when_broken(number):
                plan = on_main(_only_on_main)
            if plan is None:
                return
            number = plan.number
            try:
                self._train_trial(FollowedTrial(plan.params, number), plan)
            except HpoError:
                pass  # The main process meets the same error, and tells when to stop.

    @contextmanager
    def _leaving_when_broken(self, number: int) -> Iterator[None]:
        """An exchange outside of a trial's training, from which a lost process ends this one."""
        try:
            yield
        except RuntimeError as error:
            if self._group is None or not is_lost_peer(error):
                raise
            self._group.leave(Failure(self.args.process_index, number, str(error)), error)


class FollowedTrial(optuna.trial.FixedTrial):
    """A trial of another process; a plain `FixedTrial` has no `params` before it is asked."""

    @property
    def params(self) -> dict[str, Any]:
        """What the main process sampled."""
        return dict(self._params)


def _only_on_main() -> None:
    raise AssertionError("the main process decides, and this is called on the others alone")
