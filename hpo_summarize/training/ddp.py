"""Ranks that train one trial together: the main one runs the study, the others follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from hpo_summarize.errors import HpoError, ProcessError
from hpo_summarize.launch.processes import broadcast
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.training.trial import TrialPlan


@contextmanager
def leading() -> Iterator[None]:
    """Ends the loops of the ranks that `follow` after the last trial."""
    try:
        yield
    except KeyboardInterrupt:
        raise  # The others are interrupted, too.
    except Exception as error:
        dismiss(error if isinstance(error, HpoError) else None)
        raise
    dismiss()


def dismiss(error: HpoError | None = None) -> None:
    """Ends the loops of the ranks that `follow`.

    Args:
        error: They raise it.
    """
    with suppress(ProcessError):  # They have ended already.
        broadcast(error)


def follow(train: Callable[[TrialPlan], Any]) -> None:
    """Trains the trials of the main rank until it has no more.

    Raises:
        HpoError: The search of the main rank has ended in it.
    """
    while (plan := broadcast()) is not None:
        if isinstance(plan, HpoError):
            plan.shared = True
            raise plan
        try:
            train(plan)
        except HpoError as error:
            if not error.shared:
                raise
            # The main rank has the same error, and decides whether the search ends.


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
