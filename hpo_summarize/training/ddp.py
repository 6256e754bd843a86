"""Several processes that train one trial after the other together: one leads, the others follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from hpo_summarize.errors import HpoError
from hpo_summarize.launch.processes import hear, is_lost_peer, tell
from hpo_summarize.training.group_failure import Group
from hpo_summarize.training.one_trial import TrialTrainer


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
                self._end_search()
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


class DecidedTrial(optuna.Trial):
    """A trial of a study whose values are known; in all other respects the trial itself.

    `model_init`, `hp_name` and callbacks are given it: `params` holds the values, and `suggest_*`
    returns them. Its storage keeps what was sampled, from which the sampler learns.

    Args:
        trial: The trial.
        values: Its hyperparameters by name.
    """

    def __init__(self, trial: optuna.Trial, values: Mapping[str, Any]) -> None:
        vars(self).update(vars(trial))  # `Trial.__init__` would start the sampler once more.
        self._values = dict(values)

    @property
    def params(self) -> dict[str, Any]:
        """All values, and what was sampled since."""
        return {**super().params, **self._values}

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        return self._values[name] if name in self._values else super()._suggest(name, distribution)


class FollowedTrial(optuna.trial.FixedTrial):
    """Like `DecidedTrial`, for a trial of another process."""

    @property
    def params(self) -> dict[str, Any]:
        """All values; a plain `FixedTrial` has none before it is asked."""
        return dict(self._params)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        return self._params[name] if name in self._params else super()._suggest(name, distribution)
