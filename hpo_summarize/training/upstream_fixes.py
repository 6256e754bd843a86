"""Faults of transformers 5.23 and peft 0.21 that are fixed here, each by one function or callback.

Each names the source line or the behaviour, and the condition under which it can be deleted.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers import EvalPrediction, Seq2SeqTrainer, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.errors import ModelError
from hpo_summarize.generation import IGNORED_LABEL, set_decoding
from hpo_summarize.launch.processes import on_all
from hpo_summarize.models.families import family_of, require_family
from hpo_summarize.models.outputs import OUTPUTS, difference_from, first_rows, write_outputs
from hpo_summarize.training.evaluation import with_padding_token

# Attributes that evaluations set in a trainer, and `__init__` does not.
CACHED = ("_eval_dataloaders", "model_preparation_time")
# Attributes that `__init__` takes from the model, and a subclass or a script may correct.
SETTINGS = (
    *("model_accepts_loss_kwargs", "can_return_loss", "label_names"),
    *("optimizer_cls_and_kwargs", "_signature_columns"),
)


def copy_of(trainer: Any) -> Any:
    """A copy without what evaluations have cached; attributes that are its methods are its own."""
    copied = copy.copy(trainer)
    for name, value in vars(trainer).items():
        if name in CACHED:
            delattr(copied, name)
        elif isinstance(value, MethodType) and value.__self__ is trainer:
            setattr(copied, name, MethodType(value.__func__, copied))
    return copied


class EncoderNoise(TrainerCallback):
    """NEFTune noise on the embeddings that the encoder reads.

    `activate_neftune` (integrations/neftune.py) hooks `get_input_embeddings()`, whose weights
    encoder and decoder of BART and T5 share in modules of their own: nothing calls that one, and
    the noise never acts. Delete when `test_neftune_noise_reaches_an_encoder` passes on the stock
    class.
    """

    def __init__(self) -> None:
        self._hook: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Registers the hook where `args.neftune_noise_alpha` is set."""
        self._remove()  # Of a training that was interrupted.
        model = unwrap_peft_model(kwargs["model"])
        family = family_of(model.config)
        if args.neftune_noise_alpha is None or family is None:
            return
        embeddings = family.input_embeddings(model)
        if embeddings is not model.get_input_embeddings():
            embeddings.neftune_noise_alpha = args.neftune_noise_alpha
            self._hook = embeddings.register_forward_hook(neftune_post_forward_hook)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes the hook."""
        self._remove()

    def _remove(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None


def use_one_gpu(args: TrainingArguments) -> None:
    """Keeps `DataParallel` off, which enlarges the batch with each GPU of the machine.

    training_args.py, `_setup_devices`: `_n_gpu = torch.cuda.device_count()`. Delete when
    transformers drops `DataParallel`.
    """
    args._n_gpu = min(args.n_gpu, 1)


def release(trainer: Trainer) -> None:
    """Drops the model, its optimizer and every other reference to them.

    trainer.py, `train`: `self.model = self.call_model_init(trial)` builds the new model while the
    trainer and its callback handler still hold the old one. Delete when row 10 of
    `tests/test_upstream.py` passes on the stock class.
    """
    hold(trainer, None)
    trainer.accelerator.free_memory()  # Collects garbage, too.


def hold(trainer: Trainer, model: Any) -> None:
    """Gives a trainer a model, and drops its optimizer and schedule."""
    trainer.model = trainer.model_wrapped = model
    # An evaluation outside of a training sets it, and it would be a metric of all later ones.
    trainer.__dict__.pop("model_preparation_time", None)
    trainer.optimizer = trainer.lr_scheduler = None
    handler: Any = getattr(trainer, "callback_handler", None)
    if handler is not None:
        handler.model, handler.optimizer, handler.lr_scheduler = model, None, None
        handler.train_dataloader = handler.eval_dataloader = None


def put_decoding(model: Any, values: Mapping[str, Any]) -> None:
    """Puts decoding values into a model's own generation config, with the cache on.

    trainer_seq2seq.py, `__init__`: the generation config of the arguments replaces that of the
    first model as a whole (its special tokens, too), and no later model gets it. peft 0.21 hands a
    config that is set on its wrapper on to decoder-only models alone. Delete when both tests of
    rows 7 and 23 on generation pass on the stock class.
    """
    base = unwrap_peft_model(model)
    config = copy.deepcopy(base.generation_config)
    set_decoding(config, values)
    base.generation_config = config


def decoding_of(args: TrainingArguments) -> dict[str, Any]:
    """The values of `args.generation_config`."""
    given = getattr(args, "generation_config", None)
    if given is None:
        return {}
    fields = Seq2SeqTrainer.load_generation_config(given).to_dict()
    fields.pop("transformers_version", None)
    return {name: value for name, value in fields.items() if value is not None}


def token_mean(
    outputs: Any, labels: torch.Tensor, n_tokens: torch.Tensor | int | None, smoothing: float
) -> torch.Tensor:
    """Cross entropy summed over the tokens of a batch, divided by those of the whole step.

    trainer.py takes the **kwargs in the forward of BART and T5 for a promise to divide the loss by
    `num_items_in_batch` (`model_accepts_loss_kwargs`). They ignore it, and the loss comes out
    multiplied by the accumulation steps and by the number of processes. Delete when
    `test_the_loss_does_not_grow_with_the_accumulation_steps` passes on the stock class.

    Args:
        outputs: Of the model, with `logits` of shape `(rows, tokens, vocabulary)`.
        labels: Shape `(rows, tokens)`.
        n_tokens: Tokens with a label in the whole step; None: those of the batch.
        smoothing: Label smoothing, 0 to 1.
    """
    logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=IGNORED_LABEL,
        label_smoothing=smoothing,
        reduction="sum",
    )
    return loss / (labels.ne(IGNORED_LABEL).sum() if n_tokens is None else n_tokens)


def with_decoder_inputs(base: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Gives the decoder its shifted labels; `Trainer.compute_loss` takes out the labels."""
    inputs = {**inputs, "use_cache": False}
    if "decoder_input_ids" not in inputs:
        inputs["decoder_input_ids"] = require_family(base.config).decoder_inputs(
            base, inputs["labels"]
        )
    return inputs


def share_of_own_loss(
    trainer: Trainer,
    model: torch.nn.Module,
    inputs: Mapping[str, Any],
    n_tokens: torch.Tensor | int | None,
) -> tuple[torch.Tensor, Any]:
    """The loss of the model's forward, a mean over a batch, by its share of the whole step.

    Returns:
        The loss and the outputs of the model.
    """
    outputs = model(**inputs, use_cache=False)
    loss, tokens = outputs["loss"], inputs["labels"].ne(IGNORED_LABEL).sum()
    if not tokens:  # Rows that only fill up the last step of an epoch.
        loss = outputs["logits"].sum() * 0
    if n_tokens is not None:
        loss = loss * tokens / n_tokens
        if trainer.args.average_tokens_across_devices:  # As the parent does.
            loss = loss * trainer.accelerator.num_processes
    return loss, outputs


def step_groups(sampler: Sampler | None, args: TrainingArguments) -> Sampler | None:
    """Rows of like length in groups of a whole optimizer step, in one order for all processes.

    trainer.py, `_get_train_sampler`: its groups are of the share of one process, and each process
    draws an order of its own; with dropout they differ, and rows are left out or read twice. Delete
    when `LengthGroupedSampler` is seeded by the arguments.
    """
    if not isinstance(sampler, LengthGroupedSampler):
        return sampler
    seed = args.seed if args.data_seed is None else args.data_seed
    return LengthGroups(sampler.batch_size * args.world_size, sampler.lengths, seed)


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
        """Called before each epoch, also when a training is resumed."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return super().__iter__()


def mask_padding_rows(trainer: Trainer, batch: Any) -> Any:
    """Masks the samples that accelerate's padding duplicates in the last step of an epoch.

    accelerate fills the step up with rows from the beginning (`even_batches`), and their labels
    would count twice. Delete when the Trainer takes uneven batches.
    """
    state = trainer.accelerator.gradient_state
    if state.end_of_dataloader and state.remainder > 0:
        before = trainer.args.process_index * trainer.args.per_device_train_batch_size
        batch["labels"][max(state.remainder - before, 0) :] = IGNORED_LABEL
    return batch


@contextmanager
def decodable_predictions(trainer: Trainer) -> Iterator[None]:
    """Replaces the -100 in the predictions that `compute_metrics` is given.

    trainer.py, `evaluation_loop`: batches of unequal width are padded with -100, at which
    `batch_decode` overflows. Every process computes the metrics, and all continue or none.
    Delete when row 19 passes on the stock class.
    """
    own = trainer.compute_metrics

    def compute(prediction: EvalPrediction, **kwargs: Any) -> dict[str, float]:
        if trainer.args.predict_with_generate and isinstance(prediction.predictions, np.ndarray):
            prediction.predictions = with_padding_token(trainer, prediction.predictions)
        return on_all(lambda: own(prediction, **kwargs))

    trainer.compute_metrics = None if own is None else compute
    try:
        yield
    finally:
        trainer.compute_metrics = own


def record_outputs(trainer: Trainer, folder: Path) -> None:
    """Records beside the weights of a checkpoint what the model says of a few rows."""
    batch = first_rows(trainer.eval_dataset, trainer.data_collator)
    if batch is not None:
        write_outputs(trainer.accelerator.unwrap_model(trainer.model), batch, folder / OUTPUTS)


def check_outputs(folder: Path, model: Any) -> None:
    """Refuses weights that do not give the model that was saved.

    peft 0.21 loads an adapter on another base than its own without an error. Delete when
    `load_adapter` compares the bases.

    Raises:
        ModelError: The model says something else of the recorded rows.
    """
    if differs := difference_from(folder / OUTPUTS, model):
        raise ModelError(
            f"the weights in {folder} do not give the model that was saved "
            f"({differs}); use the recipe and the model of the run that wrote them, or set "
            "another output_dir and start again"
        )
