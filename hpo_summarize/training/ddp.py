"""Several processes that train one trial after the other together: one leads, the others follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from hpo_summarize.errors import HpoError, ProcessError
from hpo_summarize.launch.processes import broadcast
from hpo_summarize.training.group_failure import Group
from hpo_summarize.training.one_trial import TrialTrainer


class GroupTrainer(TrialTrainer):
    """Trains the trials of a search on every process of a group."""

    @contextmanager
    def _leading_the_group(self, study: optuna.Study) -> Iterator[None]:
        """Ends the loops of the processes that follow after the last trial."""
        if self.args.world_size == 1:
            yield
            return
        self._group = broadcast(Group(study))
        try:
            yield
        except KeyboardInterrupt:
            raise  # The others are interrupted, too.
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
        """Ends the loops of the processes that follow the main one.

        Args:
            error: They raise it.
        """
        with suppress(ProcessError):  # They have ended already.
            broadcast(error)

    def follow(self) -> None:
        """Trains the trials that the main process of the group runs, until it has no more.

        What every other process does while the main one is in `hyperparameter_search`.

        Raises:
            HpoError: The search of the main process has ended in it.
        """
        self._group = broadcast()  # None where the main process has failed before.
        while self._group is not None and (plan := broadcast()) is not None:
            if isinstance(plan, HpoError):
                plan.shared = True
                raise plan
            try:
                self._train_trial(FollowedTrial(plan.params, plan.number), plan)
            except HpoError as error:
                if not error.shared:
                    raise
                # The main process has the same error, and decides whether the search ends.
        self._end_search()


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
