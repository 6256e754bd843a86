"""Ranks that train one trial together: the main one runs the study, the others follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from hpo_summarize.errors import HpoError
from hpo_summarize.launch.processes import hear, is_lost_peer, tell
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.training.group_failure import Group
from hpo_summarize.training.trial import TrialPlan


@contextmanager
def leading(group: Group) -> Iterator[None]:
    """Releases the ranks that `follow` when the main one has no more trials."""
    with group.listening():
        try:
            yield
        except KeyboardInterrupt:
            raise  # The others get the same signal.
        except Exception as error:
            dismiss(error if isinstance(error, HpoError) else None)
            raise
        dismiss()


def dismiss(error: HpoError | None = None) -> None:
    """Releases the ranks that follow the main one.

    Args:
        error: They raise it.
    """
    try:
        tell(error)
    except RuntimeError as lost:
        if not is_lost_peer(lost):  # A rank that is gone needs no message.
            raise


def follow(group: Group, train: Callable[[TrialPlan], Any]) -> None:
    """Trains the trials of the main rank until it has no more.

    Raises:
        HpoError: The search of the main rank has ended in it.
    """
    number = 0
    while True:
        with group.leaving_when_broken(number):
            plan = hear()
        if plan is None:
            return
        if isinstance(plan, HpoError):
            plan.shared = True
            raise plan
        number = plan.number
        try:
            train(plan)
        except HpoError as error:
            if not error.shared:
                raise
            # The main rank has raised it, too, and decides when to stop.


class DecidedTrial(optuna.Trial):
    """A trial of a study whose values are known; in all other respects the trial itself.

    `model_init`, `hp_name` and callbacks are given it: `params` holds the values, and `suggest_*`
    returns them. Its storage keeps what was sampled, from which the sampler learns.

    Args:
        trial: The trial.
        spec: Its values.

    Attributes:
        spec: Its values, split by what they act on.
    """

    def __init__(self, trial: optuna.Trial, spec: TrialSpec) -> None:
        vars(self).update(vars(trial))  # `Trial.__init__` would start the sampler once more.
        self.spec = spec
        self._known = {**trial.params, **spec.values}

    @property
    def sampled(self) -> dict[str, Any]:
        """What was sampled, as the storage keeps it."""
        return super().params

    @property
    def params(self) -> dict[str, Any]:
        """All values, and what was sampled since."""
        return {**super().params, **self._known}

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        return self._known[name] if name in self._known else super()._suggest(name, distribution)


class FollowedTrial(optuna.trial.FixedTrial):
    """Like `DecidedTrial`, for values without a trial of a study on this process.

    Args:
        spec: Its values.
        number: Number of the trial.
        sampled: What was sampled beside them, by name.
    """

    def __init__(
        self, spec: TrialSpec, number: int = 0, sampled: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__({**(sampled or {}), **spec.values}, number)
        self.spec = spec

    @property
    def params(self) -> dict[str, Any]:
        """All values; a plain `FixedTrial` has none before it is asked."""
        return dict(self._params)

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        return self._params[name] if name in self._params else super()._suggest(name, distribution)
