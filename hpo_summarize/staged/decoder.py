"""Decoding with the trained models, on every process of a group alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import optuna

from hpo_summarize.decoding import Summaries
from hpo_summarize.distributed import hear, on_all, tell
from hpo_summarize.errors import HpoError
from hpo_summarize.experiment import Experiment
from hpo_summarize.staged.finalists import Finalist
from hpo_summarize.trainer import SummarizationTrainer
from hpo_summarize.trainer.device_batches import Sizes, halved
from hpo_summarize.trainer.group_failure import Group, failure_of
from hpo_summarize.trainer.trial_run import is_out_of_memory


@dataclass(frozen=True)
class Part:
    """Rows that are decoded in one go.

    Attributes:
        number: Number of the trial that they are decoded for.
        finalist: The model.
        values: What was sampled for its decoding.
        rows: Positions in the validation split.
        sizes: Per-device batch sizes, of which the second one counts here.
    """

    number: int
    finalist: Finalist
    values: Mapping[str, Any]
    rows: Sequence[int]
    sizes: Sizes


class Decoder:
    """Decodes the validation split with one finalist after the other.

    In a group the main process calls `decode`, and the others `follow` it.

    Args:
        experiment: The parts of the recipe.
        trainer: Has the trials of the first stage, and decodes.
    """

    def __init__(self, experiment: Experiment, trainer: SummarizationTrainer) -> None:
        self._experiment, self._trainer = experiment, trainer
        self._loaded: int | None = None
        self._sizes = self.own_sizes
        self._group: Group | None = None

    @property
    def own_sizes(self) -> Sizes:
        """The per-device batch sizes of the recipe."""
        args = self._trainer.args
        return args.per_device_train_batch_size, args.per_device_eval_batch_size

    @property
    def is_alone(self) -> bool:
        """Whether one process decodes by itself."""
        return self._trainer.args.world_size == 1

    # On the main process.

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Lets the processes that `follow` go when the main one has nothing more to decode.

        They wait from the end of the first stage on, also where it has failed.
        """
        try:
            yield
        except KeyboardInterrupt:
            raise  # They are interrupted, too, and listen no more.
        except Exception:
            self._trainer.dismiss_group()
            raise
        self._trainer.dismiss_group()

    @contextmanager
    def listening(self, study: optuna.Study) -> Iterator[None]:
        """Meanwhile the failure of another process ends the trial of `study` that runs."""
        if not self.is_alone:
            self._group = Group(self._trainer.args.process_index, study)
        with self._group.listening() if self._group else nullcontext():
            yield

    def decode(self, part: Part) -> Summaries:
        """The summaries of the rows, in their order, decoded by all processes."""
        tell(part)
        return self._decode(part)

    def smaller(self, error: Exception) -> Sizes | None:
        """The per-device batches to try after an error; None if it is not for want of memory."""
        return halved(self._sizes) if is_out_of_memory(error) else None

    def fail(self, number: int, error: Exception) -> None:
        """Drops the model, and ends this process where the others do not know of its error.

        Args:
            number: Number of the trial.
            error: What happened.
        """
        if self._group is not None and not (isinstance(error, HpoError) and error.shared):
            rank = self._trainer.args.process_index
            self._group.leave(failure_of(rank, number, error, self.smaller(error)), error)
        self._loaded = None

    # On the others.

    def follow(self) -> None:
        """Decodes with the main process of the group, until it has no more trials."""
        self._group, number = Group(self._trainer.args.process_index), 0
        while True:
            with self._group.leaving_when_broken(number):
                part = hear()
            if part is None:
                return
            number = part.number
            try:
                self._decode(part)
            except Exception as error:
                self.fail(number, error)

    def _decode(self, part: Part) -> Summaries:
        finalist, self._sizes = part.finalist, part.sizes
        if self._loaded != finalist.number:
            on_all(lambda: self._trainer.load_trial(finalist.params, finalist.checkpoint))
            self._loaded = finalist.number
        fixed = self._experiment.decided_recipe.generation.model_dump()
        data = self._trainer.eval_dataset.select(part.rows)
        decoding = {"use_cache": True, **fixed, **part.values}
        ids = self._trainer.summarise(data, decoding, self._sizes[1])
        return Summaries(self._experiment.decode(ids), self._trainer.n_cut)
