"""Time and memory of a search, measured in the same way for every method."""

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
from benchmarking.clocks import Samples, Time, now
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
    """Measures times, evaluations, generated tokens and memory while it is open (`with`).

    Training is the time between the start and the end of an epoch; for that it must be among the
    callbacks of the trainer. Evaluation is the time in `Trainer.evaluate`, `Trainer.predict` and
    `generate` of transformers, which are wrapped meanwhile.

    Attributes:
        spent: Time by section: `TRAINING`, `EVALUATION`, `SAVING`; `ELSE` after the end.
        total: Time between start and end.
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
        for owner, name, watch in (
            (Trainer, "evaluate", self._watch_evaluation),
            (Trainer, "predict", self._watch_evaluation),
            (Trainer, "_save_checkpoint", self._watch_saving),
            (Trainer, "save_model", self._watch_saving),
            (GenerationMixin, "generate", self._watch_generation),
            (PreTrainedModel, "__init__", self._watch_model),
            (torch.optim.Optimizer, "__init__", self._watch_optimizer),
        ):
            self._exits.enter_context(wrapped(owner, name, watch))
        self.samples = self._exits.enter_context(Samples())
        self._began = now()
        return self

    def __exit__(self, *error: object) -> None:
        self.total = now() - self._began
        self._exits.close()
        self.spent[ELSE] = self.total - sum(
            (self.spent[part] for part in (TRAINING, EVALUATION, SAVING)), start=Time()
        )

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Adds the time inside to a section; inside of another section, to the outer one."""
        began = now()
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            if not self._open:
                self.spent[name] += now() - began

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
        self.spent[TRAINING] += now() - self._epoch_began

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
        # Every row starts with the start token, which is not generated.
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
    """Replaces a method by `watch(original, ...)`, and restores it afterwards."""
    original = getattr(owner, name)

    @functools.wraps(original)  # With its signature, which peft and accelerate look at.
    def method(*args: Any, **kwargs: Any) -> Any:
        return watch(original, *args, **kwargs)

    setattr(owner, name, method)
    try:
        yield
    finally:
        setattr(owner, name, original)
