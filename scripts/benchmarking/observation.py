"""Where the time and the memory of a search go, seen from outside, the same for every method."""

from __future__ import annotations

import functools
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from benchmarking.clocks import Samples, Time, now, since
from transformers import (
    GenerationMixin,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

TRAINING, EVALUATION, SAVING, ELSE = "training", "evaluation", "saving", "everything else"


@dataclass
class Training:
    """One training.

    Attributes:
        n_steps: Optimizer steps it was planned to take.
        rates: Learning rate of each step that it took.
    """

    n_steps: int
    rates: list[float] = field(default_factory=list)

    @property
    def warmup_steps(self) -> int:
        """Steps before the one with the highest learning rate."""
        return int(np.argmax(self.rates)) if self.rates else 0


class Observation(TrainerCallback):
    """Notes times, evaluations, generated tokens and memory while it is open (`with`).

    The training is what lies between the begin and the end of an epoch. Whatever evaluates or
    generates is evaluation, by whichever class: it is seen at `Trainer.evaluate`,
    `Trainer.predict` and `generate` of transformers, which are wrapped meanwhile. To see the
    epochs, this must be among the callbacks of the trainer.

    Attributes:
        spent: Time by section: `TRAINING`, `EVALUATION`, `SAVING`; `ELSE` after the end.
        total: Time between begin and end.
        trainings: Every training, in order.
        n_evaluations: Calls of `evaluate` and `predict`.
        n_tokens: Generated tokens, without padding; those of the best beam only.
        without_cache: Calls of `generate` with the key-value cache off.
        most_models: Greatest number of models that were alive at once, from the first training on.
        most_optimizers: Likewise of optimizers.
    """

    def __init__(self) -> None:
        self.spent: dict[str, Time] = defaultdict(Time)
        self.total = Time()
        self.trainings: list[Training] = []
        self.n_evaluations = self.n_tokens = self.without_cache = 0
        self.most_models = self.most_optimizers = 0
        self._open: list[str] = []
        self._models: weakref.WeakSet = weakref.WeakSet()
        self._optimizers: weakref.WeakSet = weakref.WeakSet()
        self._epoch_began = Time()

    def __enter__(self) -> Observation:
        self._exits = ExitStack()
        self._exits.enter_context(wrapped(Trainer, "evaluate", self._watch_evaluation))
        self._exits.enter_context(wrapped(Trainer, "predict", self._watch_evaluation))
        self._exits.enter_context(wrapped(Trainer, "_save_checkpoint", self._watch_saving))
        self._exits.enter_context(wrapped(Trainer, "save_model", self._watch_saving))
        self._exits.enter_context(wrapped(GenerationMixin, "generate", self._watch_generation))
        self._exits.enter_context(wrapped(PreTrainedModel, "__init__", self._watch_model))
        self._exits.enter_context(wrapped(torch.optim.Optimizer, "__init__", self._watch_optimizer))
        self.samples = Samples()
        self._exits.enter_context(self.samples)
        self._began = now()
        return self

    def __exit__(self, *error: object) -> None:
        self.total = since(self._began)
        self._exits.close()
        parts = (TRAINING, EVALUATION, SAVING)
        self.spent[ELSE] = Time(
            self.total.wall - sum(self.spent[part].wall for part in parts),
            self.total.cpu - sum(self.spent[part].cpu for part in parts),
        )

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Adds the time inside to a section; inside of another one it belongs to that."""
        began = now()
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            if not self._open:
                self._add(name, began)

    def _add(self, name: str, began: Time) -> None:
        time_since = since(began)
        self.spent[name].wall += time_since.wall
        self.spent[name].cpu += time_since.cpu

    # What the trainer calls.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begins a training."""
        if not self.trainings:  # What a dry run makes before a search is not counted.
            self.most_models, self.most_optimizers = len(self._models), len(self._optimizers)
        self.trainings.append(Training(state.max_steps))

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts the clock of the training."""
        self._epoch_began = now()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stops the clock of the training; evaluation and saving come after this."""
        self._add(TRAINING, self._epoch_began)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Notes the learning rate of the step."""
        self.trainings[-1].rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    # What is wrapped.

    def _watch_evaluation(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.n_evaluations += 1
        with self.section(EVALUATION):
            return call(*args, **kwargs)

    def _watch_saving(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.section(SAVING):
            return call(*args, **kwargs)

    def _watch_generation(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with self.section(EVALUATION):
            output = call(*args, **kwargs)
        ids = getattr(output, "sequences", output)
        config = kwargs.get("generation_config") or args[0].generation_config
        self.without_cache += not kwargs.get("use_cache", config.use_cache)
        # Every row begins with the start token, which is not generated.
        self.n_tokens += int((ids != config.pad_token_id).sum()) - len(ids)
        return output

    def _watch_model(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        call(*args, **kwargs)
        if isinstance(args[0], GenerationMixin):  # The encoder and the decoder are models, too.
            self._models.add(args[0])
            self.most_models = max(self.most_models, len(self._models))

    def _watch_optimizer(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        call(*args, **kwargs)
        self._optimizers.add(args[0])
        self.most_optimizers = max(self.most_optimizers, len(self._optimizers))


@contextmanager
def wrapped(owner: type, name: str, watch: Callable[..., Any]) -> Iterator[None]:
    """Puts `watch(original, ...)` in the place of a method, and the original back afterwards."""
    original = getattr(owner, name)

    @functools.wraps(original)  # With its signature, which peft and accelerate look at.
    def method(*args: Any, **kwargs: Any) -> Any:
        return watch(original, *args, **kwargs)

    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, original)
