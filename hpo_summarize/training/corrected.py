"""Training and evaluation that do what they say, with or without a search."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch.utils.data import Sampler, SequentialSampler
from transformers import (
    EvalPrediction,
    PreTrainedModel,
    Seq2SeqTrainingArguments,
    TrainingArguments,
)
from transformers.trainer_pt_utils import LabelSmoother
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, unwrap_peft_model

from hpo_summarize.errors import ModelError
from hpo_summarize.generation import IGNORED_LABEL, set_decoding
from hpo_summarize.launch.processes import on_all
from hpo_summarize.models.families import family_of, require_family
from hpo_summarize.models.outputs import OUTPUTS, difference_from, first_rows, write_outputs
from hpo_summarize.training.evaluation import GeneratingTrainer, with_padding_token
from hpo_summarize.training.upstream_fixes import EncoderNoise


class CorrectedSeq2SeqTrainer(GeneratingTrainer):
    """`Seq2SeqTrainer` without the faults of its loss, its decoding and its memory.

    The loss of an encoder-decoder model is the mean over all tokens of an optimizer step, whatever
    the number of accumulated batches and processes; the key-value cache is on in generation;
    predictions reach `compute_metrics` without -100; evaluation keeps the order of the data set; a
    new model is built when the old one is gone. `GeneratingTrainer` says how texts are generated.
    """

    model: Any
    compute_loss_func: Any
    compute_metrics: Any
    # Values that take the place of those in a new model's generation config; None: it is left as it
    # was built.
    _decoding: Mapping[str, Any] | None = {}
    _smooths_eval_loss = True

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: Seq2SeqTrainingArguments | None = None,
        *positional: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, *positional, **kwargs)
        _use_one_gpu(self.args)
        self._train_batch_size = self.args.train_batch_size
        self.add_callback(EncoderNoise())
        if family_of(self.model.config) and self.compute_loss_func is None:
            # transformers 5.23 takes the **kwargs in the forward of BART and T5 for a promise to
            # divide the loss by `num_items_in_batch`. They ignore it, and the loss comes out
            # multiplied by the accumulation steps and by the number of processes.
            self.model_accepts_loss_kwargs = False
            self.compute_loss_func = self._token_mean_loss
            self._passes_over_masked_rows = True
            self.label_smoother = None
        if self.compute_metrics is not None:
            self.compute_metrics = self._without_padding_index(self.compute_metrics)
        if self.model_init is None:
            self._set_decoding(self.model)

    def call_model_init(self, trial: optuna.trial.BaseTrial | None = None) -> PreTrainedModel:
        """Drops the old model before the new one is built, and sets up the new one's decoding.

        The parent keeps the old model and its optimizer alive meanwhile, and leaves every model but
        the first one without the generation config of the arguments.
        """
        self._release()
        model = super().call_model_init(trial)
        self._set_decoding(model)
        return model

    def _release(self, model: Any = None) -> None:
        """Drops all that a training has left, but for `model`."""
        if self.model is None and getattr(self, "optimizer", None) is None:
            return
        self.model = self.model_wrapped = model
        # An evaluation outside of a training leaves it, and it would be a metric of all later ones.
        self.__dict__.pop("model_preparation_time", None)
        self.optimizer = self.lr_scheduler = None
        handler = getattr(self, "callback_handler", None)
        if handler is not None:
            handler.model, handler.optimizer, handler.lr_scheduler = model, None, None
            handler.train_dataloader = handler.eval_dataloader = None
        self.accelerator.free_memory()  # Collects garbage, too.

    def _set_decoding(self, model: PreTrainedModel) -> None:
        if self._decoding is None:
            return
        # peft 0.21 hands a config that is set on its wrapper on to decoder-only models alone; an
        # encoder-decoder goes on generating with the base model's.
        base = unwrap_peft_model(model)
        config = copy.deepcopy(base.generation_config)
        named = getattr(self.args, "generation_config", None)
        given = {} if named is None else self.load_generation_config(named).to_dict()
        given.pop("transformers_version", None)
        given = {key: value for key, value in given.items() if value is not None}
        set_decoding(config, {**given, **self._decoding})
        base.generation_config = config

    def _use_arguments(self, args: TrainingArguments) -> None:
        """Sets `args`, and what `Trainer.__init__` takes from them once and for all."""
        _use_one_gpu(args)
        self.args = args
        self.neftune_noise_alpha = args.neftune_noise_alpha
        smooth = args.label_smoothing_factor != 0 and self.compute_loss_func is None
        self.label_smoother = LabelSmoother(args.label_smoothing_factor) if smooth else None
        self._train_batch_size = args.train_batch_size

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Gives the decoder its shifted labels, which the parent takes out of the inputs."""
        base = unwrap_peft_model(self.accelerator.unwrap_model(model))
        if self.compute_loss_func == self._token_mean_loss:
            inputs = {**inputs, "use_cache": False}
            family = require_family(base.config)
            if family.has_own_loss(base):
                return self._own_loss(model, inputs, return_outputs, num_items_in_batch)
            if "decoder_input_ids" not in inputs:
                inputs["decoder_input_ids"] = family.decoder_inputs(base, inputs["labels"])
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _own_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool,
        num_items_in_batch: torch.Tensor | int | None,
    ) -> Any:
        """The loss of the model's forward, a mean over a batch, by its part of the whole step."""
        outputs = model(**inputs)
        loss, tokens = outputs["loss"], inputs["labels"].ne(IGNORED_LABEL).sum()
        if not tokens:  # Rows that only fill up the last step of an epoch.
            loss = outputs["logits"].sum() * 0
        if num_items_in_batch is not None:
            loss = loss * tokens / num_items_in_batch
            if self.args.average_tokens_across_devices:  # As the parent does.
                loss = loss * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss

    def _token_mean_loss(
        self,
        outputs: Any,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Cross entropy summed over the tokens of a batch, divided by those of the whole step."""
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        smooths = self.model.training or self._smooths_eval_loss
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED_LABEL,
            label_smoothing=self.args.label_smoothing_factor if smooths else 0.0,
            reduction="sum",
        )
        if num_items_in_batch is None:
            return loss / labels.ne(IGNORED_LABEL).sum()
        return loss / num_items_in_batch

    @contextmanager
    def without_smoothing(self) -> Iterator[None]:
        """Measures the losses of evaluations without label smoothing for a while."""
        own, self._smooths_eval_loss = self._smooths_eval_loss, False
        try:
            yield
        finally:
            self._smooths_eval_loss = own

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        """Records beside the weights of a checkpoint what the model says of a few rows."""
        super()._save(output_dir, state_dict)
        folder = Path(output_dir or self.args.output_dir)
        if not (self.args.should_save and folder.name.startswith(PREFIX_CHECKPOINT_DIR)):
            return
        # Another loss may belong to a model that shifts its labels otherwise or reads other inputs,
        # and sharded weights give no outputs on one process alone.
        has_whole = not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
        if self.compute_loss_func == self._token_mean_loss and has_whole:
            batch = first_rows(self.eval_dataset, self.data_collator)
            if batch is not None:
                write_outputs(self.accelerator.unwrap_model(self.model), batch, folder / OUTPUTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Refuses weights that do not give the model that was saved.

        peft loads an adapter on a base that is another one without an error.

        Raises:
            ModelError: The model says something else of the recorded rows.
        """
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        loaded = self.accelerator.unwrap_model(self.model if model is None else model)
        if differs := difference_from(Path(resume_from_checkpoint) / OUTPUTS, loaded):
            raise ModelError(
                f"the weights in {resume_from_checkpoint} do not give the model that was saved "
                f"({differs}); use the recipe and the model of the run that wrote them, or set "
                "another output_dir and begin anew"
            )

    def _get_eval_sampler(self, eval_dataset: Sized) -> Sampler | None:
        """Keeps the order of the data set, by which predictions and references are paired."""
        return SequentialSampler(eval_dataset)

    def _without_padding_index(
        self, compute_metrics: Callable[..., dict[str, float]]
    ) -> Callable[..., dict[str, float]]:
        """Replaces the -100 between unequal batches, at which `batch_decode` overflows.

        Every process has all predictions, and goes on only where all of them could be scored.
        """

        def compute(prediction: EvalPrediction, **kwargs: Any) -> dict[str, float]:
            ids = prediction.predictions
            if self.args.predict_with_generate and isinstance(ids, np.ndarray):
                prediction.predictions = with_padding_token(self, ids)
            return on_all(lambda: compute_metrics(prediction, **kwargs))

        return compute


def _use_one_gpu(args: TrainingArguments) -> None:
    """Keeps `DataParallel` off, which would enlarge the batch with each GPU of the machine."""
    args._n_gpu = min(args.n_gpu, 1)
