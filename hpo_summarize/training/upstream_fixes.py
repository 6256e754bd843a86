"""Faults of transformers that are closed here, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Seq2SeqTrainer, TrainerCallback
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.generation import IGNORED_LABEL
from hpo_summarize.models.families import family_of


class EncoderNoise(TrainerCallback):
    """Puts the noise on the embeddings that the encoder reads.

    transformers 5.23 puts it on `get_input_embeddings()`, whose weights encoder and decoder share
    in modules of their own: nothing calls that one, and the noise never acts.
    """

    def __init__(self) -> None:
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins with the noise of `args.neftune_noise_alpha`, if there is one."""
        self._remove()  # A training that was cut off has left its own.
        model = unwrap_peft_model(kwargs["model"])
        family = family_of(model.config)
        if args.neftune_noise_alpha is None or family is None:
            return
        embeddings = family.input_embeddings(model)
        if embeddings is not model.get_input_embeddings():
            embeddings.neftune_noise_alpha = args.neftune_noise_alpha
            self._hook = embeddings.register_forward_hook(neftune_post_forward_hook)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends it."""
        self._remove()

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


class SharingTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` whose steps have the rows that they have on one process.

    Checkpoints are whole on every process before they are marked as such.
    """

    # Whether a row of which no label counts adds nothing to the loss of a step.
    _passes_over_masked_rows = False

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        """Makes groups of like length for a whole step, in one order for all processes.

        The parent's are for the share of one process, and each process draws its own order: with
        dropout they drift apart, and rows are left out or read twice.
        """
        sampler = super()._get_train_sampler(*args, **kwargs)
        if not isinstance(sampler, LengthGroupedSampler):
            return sampler
        given = self.args.data_seed
        seed = self.args.seed if given is None else given
        return LengthGroups(sampler.batch_size * self.args.world_size, sampler.lengths, seed)

    def get_batch_samples(
        self, epoch_iterator: Iterator, *args: Any, **kwargs: Any
    ) -> tuple[list, torch.Tensor | int | None]:
        """Lets no row count twice in the last step of an epoch.

        accelerate fills it up with rows from the beginning, so that all processes have as many.
        """
        if self.args.world_size > 1 and self._passes_over_masked_rows:
            epoch_iterator = map(self._without_repeated_rows, epoch_iterator)
        return super().get_batch_samples(epoch_iterator, *args, **kwargs)

    def _without_repeated_rows(self, batch: Any) -> Any:
        state = self.accelerator.gradient_state
        if state.end_of_dataloader and state.remainder > 0:
            before = self.args.process_index * self.args.per_device_train_batch_size
            batch["labels"][max(state.remainder - before, 0) :] = IGNORED_LABEL
        return batch

    def _save_rng_state(self, output_dir: str) -> None:
        """Waits for the files of all processes, before the main one marks the checkpoint whole."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()


class LengthGroups(LengthGroupedSampler):
    """Rows of like length together, in an order that the seed and the epoch alone decide.

    Args:
        batch_size: Rows of an optimizer step.
        lengths: Length of each row, in tokens.
        seed: Seed of the order.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int) -> None:
        super().__init__(batch_size, lengths=list(lengths))
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, also when a training goes on."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return super().__iter__()
