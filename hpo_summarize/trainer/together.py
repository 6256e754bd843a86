"""Several processes that train one trial after the other together: one leads, the others follow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import optuna

from hpo_summarize.distributed import hear, is_lost_peer, tell
from hpo_summarize.errors import HpoError
from hpo_summarize.trainer.group_failure import Group
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
            except HpoError as error:
                self.dismiss_group(error)
                raise
            except Exception:
                self.dismiss_group()
                raise
            else:
                self.dismiss_group()

    @staticmethod
    def dismiss_group(error: HpoError | None = None) -> None:
        """Tells the processes that follow the main one that it has nothing more for them.

        Args:
            error: They raise it.
        """
        try:
            tell(error)
        except RuntimeError as lost:
            if not is_lost_peer(lost):  # Who is gone already need not be told.
                raise

    def follow(self) -> None:
        """Trains the trials that the main process of the group runs, until it has no more.

        What every other process does while the main one is in `hyperparameter_search`.

        Raises:
            HpoError: The search of the main process has ended in it.
        """
        self._group, number = Group(self.args.process_index), 0
        while True:
            with self._leaving_when_broken(number):
                plan = hear()
            if plan is None:
                return
            if isinstance(plan, HpoError):
                plan.shared = True
                raise plan
            number = plan.number
            try:
                self._train_trial(FollowedTrial(plan.params, number), plan)
            except HpoError as error:
                if not error.shared:
                    raise
                # The main process has met it, too, and tells when to stop.

    def _leaving_when_broken(self, number: int) -> AbstractContextManager[None]:
        return self._group.leaving_when_broken(number) if self._group else nullcontext()


class FollowedTrial(optuna.trial.FixedTrial):
    """A trial of another process; a plain `FixedTrial` has no `params` before it is asked."""

    @property
    def params(self) -> dict[str, Any]:
        """What the main process sampled."""
        return dict(self._params)
