"""Evaluation with generated text: each row decoded once, in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset, SequentialSampler
from transformers import EvalPrediction, GenerationConfig, Seq2SeqTrainer
from transformers.trainer_utils import (
    EvalLoopOutput,
    denumpify_detensorize,
    unwrap_peft_model,
)

from hpo_summarize.generation import (
    IGNORED_LABEL,
    Summaries,
    beam_cache,
    count_cut,
    most_new_tokens,
    plan_batches,
    put_in_order,
    with_settings,
)

TEXTS = "texts"  # Key under which `compute_metrics` may return the decoded predictions.
_FROM_LABELS = ("decoder_input_ids", "decoder_attention_mask")

# The arrays of one batch by name: "predictions", "labels", "inputs".
Arrays = dict[str, np.ndarray]


class GeneratingTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` whose evaluations with `predict_with_generate` waste no time.

    The texts are those of the parent's loop. Rows are decoded longest first, in batches of like
    length (`plan_batches`), the cross-attention cache stays in its place (`beam_cache`), several
    processes share the rows and each row has one prediction, and the loss, for which the parent
    runs the decoder a second time, is measured only where somebody reads it: `eval_loss` is left
    out where `metric_for_best_model` names a metric that is not a loss. A last batch that is not
    full counts by its rows in it, where the parent counts it as a full one. After an evaluation a
    training goes on with the random numbers that it has with the parent.

    Predictions end in the padding token and are as wide as the longest one. Sampled texts
    (`do_sample`) are drawn with random numbers of their own, by `args.seed`: they are others than
    the parent's, the same ones at every evaluation of the same model, and no part of the training.

    Where `compute_metrics` returns the decoded predictions under `texts`, next to its numbers, they
    are described in `summaries` and are no metric.

    What the parent's loop alone can do goes through it: iterable data sets, a `prediction_step` of
    a subclass, `batch_eval_metrics`, `preprocess_logits_for_metrics`, losses in
    `include_for_metrics`, `eval_do_concat_batches=False`, DeepSpeed and FSDP.

    Attributes:
        n_cut: Rows of the last evaluation that ended at the length limit.
        summaries: `Summaries.describe` of the last evaluation; None where it gave no texts.
    """

    model: Any
    eval_dataset: Any
    compute_metrics: Any
    control: Any
    n_cut: int = 0
    summaries: dict[str, Any] | None = None
    _rows_of_loader: Any = None

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Generates for every row of `dataloader.dataset`; returns what the parent's loop does."""
        output = self._evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        self._describe(output, metric_key_prefix)
        return output

    def _describe(self, output: EvalLoopOutput, prefix: str) -> None:
        """Takes the texts out of the metrics of an evaluation, and counts what they are like."""
        texts, ids = (output.metrics or {}).pop(f"{prefix}_{TEXTS}", None), output.predictions
        self.n_cut, self.summaries = 0, None
        if self.args.predict_with_generate and isinstance(ids, np.ndarray) and ids.ndim == 2:
            with self._decoding_of_evaluation() as (config, _):
                self.n_cut = count_cut(self._with_padding_token(ids), config)
        if texts is not None:
            self.summaries = Summaries(texts, self.n_cut).describe()

    def _evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None,
        ignore_keys: list[str] | None,
        metric_key_prefix: str,
    ) -> EvalLoopOutput:
        # The parent keeps the rows that were repeated to give every process as many as the others:
        # 5 examples became 8 predictions on 2 processes.
        self.gather_function = self.accelerator.gather_for_metrics
        rest = (ignore_keys, metric_key_prefix)
        if prediction_loss_only is None:
            prediction_loss_only = self.args.prediction_loss_only
        if prediction_loss_only or not self._can_share_out(dataloader):
            return super().evaluation_loop(dataloader, description, prediction_loss_only, *rest)
        # The parent makes the model ready and measures the loss, of no rows where nobody reads it.
        rows: Any = dataloader if self._loss_is_read(dataloader) else []
        draw_as_loader()
        with _own_random_numbers(self.args.device, self.args.seed):
            measured = super().evaluation_loop(rows, description, True, *rest).metrics
            found = self._generate_all(dataloader)
        labels = found.get("labels")
        metrics = {}
        if self.compute_metrics is not None and labels is not None:
            inputs = found.get("inputs")
            metrics = self.compute_metrics(EvalPrediction(found["predictions"], labels, inputs))
        metrics = _with_prefix(denumpify_detensorize(metrics), metric_key_prefix)
        predictions = found["predictions"]
        return EvalLoopOutput(predictions, labels, {**metrics, **measured}, len(predictions))

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """A loader of the evaluation set as it is now.

        With `dataloader_persistent_workers` the parent keeps the first one, whatever is asked for.
        """
        wanted = self.eval_dataset if eval_dataset is None else eval_dataset
        if wanted is not self._rows_of_loader:
            self._rows_of_loader = wanted
            old = list(self.__dict__.pop("_eval_dataloaders", {}).values())
            others = [one for one in self.accelerator._dataloaders if one not in old]
            self.accelerator._dataloaders = others  # It would keep the processes of the old ones.
        return super().get_eval_dataloader(eval_dataset)

    def _can_share_out(self, dataloader: Any) -> bool:
        """Whether the rows can be read in another order, and nothing asks for the parent's."""
        args, dataset = self.args, dataloader.dataset
        if not isinstance(dataset, Sized) or isinstance(dataset, IterableDataset):
            return False
        first = dataset[0] if len(dataset) else None  # type: ignore[index]
        return (
            args.predict_with_generate
            and self.model.config.is_encoder_decoder
            and not (args.batch_eval_metrics or "loss" in args.include_for_metrics)
            and args.eval_do_concat_batches
            and self.preprocess_logits_for_metrics is None
            and not (self.is_deepspeed_enabled or self.is_fsdp_enabled)
            and type(self).prediction_step is GeneratingTrainer.prediction_step
            and isinstance(_sampler_of(dataloader), SequentialSampler)
            and isinstance(first, Mapping)
            and "input_ids" in first
        )

    def _loss_is_read(self, dataloader: Any) -> bool:
        """Whether the best model, a scheduler, early stopping or an objective may ask for it."""
        metric = self.args.metric_for_best_model
        return "labels" in dataloader.dataset[0] and (metric is None or metric.endswith("loss"))

    def _generate_all(self, dataloader: Any) -> dict[str, np.ndarray]:
        """The outputs of all rows, in the order of the data set, on every process."""
        args, dataset = self.args, dataloader.dataset
        lengths = [len(dataset[row]["input_ids"]) for row in range(len(dataset))]
        with self._decoding_of_evaluation() as (config, others):
            batches = plan_batches(
                lengths,
                args.per_device_eval_batch_size,
                most_new_tokens(config),
                args.process_index,
                args.world_size,
            )
            loader: DataLoader = DataLoader(
                dataset,
                batch_sampler=batches,
                collate_fn=dataloader.collate_fn,
                num_workers=args.dataloader_num_workers,
                pin_memory=args.dataloader_pin_memory,
            )
            self.callback_handler.eval_dataloader = loader
            parts = [
                (rows, self._generate(inputs, config, others))
                for rows, inputs in zip(batches, loader, strict=True)
            ]
        if args.world_size > 1:
            parts = gather_object(parts)
        return self._in_order(parts, len(dataset))

    @contextmanager
    def _decoding_of_evaluation(self) -> Iterator[tuple[GenerationConfig, dict[str, Any]]]:
        """Gives the model the arguments of `evaluate` as its own decoding for a while.

        As arguments of `generate` they would stand beside settings of the model that cannot act
        with them, such as the length penalty of its beams beside `num_beams=1`.
        """
        base = unwrap_peft_model(self.model)
        own = base.generation_config
        config, others = with_settings(own, getattr(self, "_gen_kwargs", {}))
        base.generation_config = config
        try:
            yield config, others
        finally:
            base.generation_config = own

    def _generate(
        self, inputs: dict[str, Any], config: GenerationConfig, others: dict[str, Any]
    ) -> Arrays:
        """Decodes one batch; `others` are arguments of `generate` that are no settings."""
        inputs = dict(self._prepare_inputs(inputs))
        labels, prefix = inputs.pop("labels", None), inputs.get("decoder_input_ids")
        arrays: dict[str, torch.Tensor | None] = {"labels": labels}
        if prefix is not None and labels is not None and prefix.shape == labels.shape:
            # Made from the labels by the collator: to go on from them would give the solution away.
            inputs = {key: value for key, value in inputs.items() if key not in _FROM_LABELS}
        if "inputs" in self.args.include_for_metrics:
            arrays["inputs"] = inputs["input_ids"]
        cache = beam_cache(unwrap_peft_model(self.model), config)
        if cache is not None:
            others = {"past_key_values": cache, **others}
        arrays["predictions"] = self.model.generate(**inputs, **others)
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        return {key: array.cpu().numpy() for key, array in arrays.items() if array is not None}

    def _in_order(self, parts: list[tuple[list[int], Arrays]], count: int) -> dict[str, np.ndarray]:
        paddings = dict.fromkeys(("labels", "inputs"), IGNORED_LABEL) | {
            "predictions": self._pad_id()
        }
        return {
            name: put_in_order([(rows, arrays[name]) for rows, arrays in parts], count, padding)
            for name, padding in paddings.items()
            if name in parts[0][1]
        }

    def _pad_id(self) -> int:
        owner = self.processing_class or unwrap_peft_model(self.model).config
        return owner.pad_token_id

    def _with_padding_token(self, ids: np.ndarray) -> np.ndarray:
        """Token ids that a tokenizer can decode, where the parent has filled up with -100."""
        return np.where(ids == IGNORED_LABEL, self._pad_id(), ids)

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Takes back the parent's default for `max_length`, with which every batch would warn."""
        outputs = super().prediction_step(*args, **kwargs)
        config = unwrap_peft_model(self.model).generation_config
        if config.max_new_tokens is not None:
            config.max_length = None
        return outputs


def _sampler_of(dataloader: DataLoader) -> Any:
    """What puts the rows in order; with several processes accelerate shares out its batches."""
    batches = dataloader.batch_sampler
    return getattr(getattr(batches, "batch_sampler", batches), "sampler", None)


def draw_as_loader() -> None:
    """Draws the random number that a pass over the evaluation set draws in the parent's loop.

    `torch.utils.data.dataloader._BaseDataLoaderIter` draws the seed of its workers, also without
    any. With it the dropout of the training after an evaluation is that of the parent.
    """
    torch.empty((), dtype=torch.int64).random_()


@contextmanager
def _own_random_numbers(device: torch.device, seed: int) -> Iterator[None]:
    """Sampled texts are those of a seed, and the training goes on with its own random numbers."""
    devices = [] if device.type == "cpu" else [device]
    # Without the type, torch would take the accelerator of the machine, whatever `device` is.
    with torch.random.fork_rng(devices, device_type=device.type):
        torch.manual_seed(seed)
        yield


def _with_prefix(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {k if k.startswith(f"{prefix}_") else f"{prefix}_{k}": v for k, v in metrics.items()}
