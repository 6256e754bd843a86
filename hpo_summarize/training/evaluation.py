"""Evaluation by generated texts, faster than the parent's where `predict_with_generate` is on.

The texts are those of the parent's loop, and so are the random numbers of a training after it. Rows
are decoded in length-bucketed batches (`plan_batches`) with a cheaper KV cache (`beam_cache`), and
several processes share them. `eval_loss`, for which the parent runs the decoder a second time, is
left out where `metric_for_best_model` names a metric that is not a loss; a last batch that is not
full counts by its rows in it. Sampled texts (`do_sample`) are those of `args.seed`, at every
evaluation of the same model. See `can_bucket` for what goes through the parent's loop.

Predictions end in the padding token and are as wide as the longest one. Where `compute_metrics`
returns them as text under `texts`, they are described in `summaries` of the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader, IterableDataset
from transformers import EvalPrediction, Seq2SeqTrainer
from transformers.trainer_utils import (
    EvalLoopOutput,
    denumpify_detensorize,
    unwrap_peft_model,
)

from hpo_summarize.decoder import (
    decoding_with,
    generate,
    own_random_numbers,
    plan_batches,
    put_in_order,
)
from hpo_summarize.generation import IGNORED_LABEL, Summaries, count_cut, most_new_tokens
from hpo_summarize.models.families import family_of

TEXTS = "texts"  # Key under which `compute_metrics` may return the decoded predictions.


def run_evaluation(
    trainer: Any,
    parent_loop: Callable[..., EvalLoopOutput],
    dataloader: DataLoader,
    loss_only: bool | None,
    prefix: str,
) -> EvalLoopOutput:
    """The evaluation loop of a trainer, whose `n_cut` and `summaries` it sets.

    Args:
        trainer: The trainer.
        parent_loop: The parent's, of a loader and `prediction_loss_only`.
        dataloader: Of the rows to evaluate.
        loss_only: `prediction_loss_only`.
        prefix: Begins the name of each metric.
    """
    # The parent keeps the rows that were repeated to give every process as many as the others:
    # 5 examples became 8 predictions on 2 processes.
    trainer.gather_function = trainer.accelerator.gather_for_metrics
    if loss_only is None:
        loss_only = trainer.args.prediction_loss_only
    with decoding_with(trainer.model, getattr(trainer, "_gen_kwargs", {})) as arguments:
        if loss_only or not can_bucket(trainer, dataloader):
            output = parent_loop(dataloader, prediction_loss_only=loss_only)
        else:
            output = _evaluate_texts(trainer, parent_loop, dataloader, prefix, arguments)
        ids, trainer.n_cut = output.predictions, 0
        if trainer.args.predict_with_generate and isinstance(ids, np.ndarray) and ids.ndim == 2:
            ids = with_padding_token(trainer, ids)
            trainer.n_cut = count_cut(ids, unwrap_peft_model(trainer.model).generation_config)
    texts = (output.metrics or {}).pop(f"{prefix}_{TEXTS}", None)
    trainer.summaries = None if texts is None else Summaries(texts, trainer.n_cut).describe()
    return output._replace(predictions=ids)


def can_bucket(trainer: Any, dataloader: Any) -> bool:
    """Whether rows can be generated for in another order than the parent's loop does.

    Not so for streams, a `prediction_step` of a subclass, `batch_eval_metrics`, losses in
    `include_for_metrics`, `preprocess_logits_for_metrics`, labels that only the collator makes,
    `eval_do_concat_batches=False`, DeepSpeed and FSDP.
    """
    args, rows = trainer.args, dataloader.dataset
    if isinstance(rows, IterableDataset) or not isinstance(rows, Sized) or not len(rows):
        return False
    first: Any = rows[0]  # type: ignore[index]
    return (
        args.predict_with_generate
        and family_of(trainer.model.config) is not None
        and not (args.batch_eval_metrics or "loss" in args.include_for_metrics)
        and args.eval_do_concat_batches
        and trainer.preprocess_logits_for_metrics is None
        and not (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled)
        and type(trainer).prediction_step is Seq2SeqTrainer.prediction_step
        and isinstance(first, Mapping)
        and "input_ids" in first
        and ("labels" in first or dataloader.collate_fn([first]).get("labels") is None)
    )


def _evaluate_texts(
    trainer: Any,
    parent_loop: Callable[..., EvalLoopOutput],
    dataloader: Any,
    prefix: str,
    arguments: Mapping[str, Any],
) -> EvalLoopOutput:
    args, metric = trainer.args, trainer.args.metric_for_best_model
    rows = [dataloader.dataset[number] for number in range(len(dataloader.dataset))]
    labels = _column(rows, "labels", IGNORED_LABEL) if "labels" in rows[0] else None
    inputs = None
    if "inputs" in args.include_for_metrics:
        inputs = _column(rows, "input_ids", pad_token_id(trainer))
    loss_is_read = labels is not None and (metric is None or metric.endswith("loss"))
    draw_as_loader()
    with own_random_numbers(args.device, args.seed):
        # Of no rows, too, it puts the model in place.
        losses = parent_loop(dataloader if loss_is_read else [], prediction_loss_only=True)
        ids = _generate_all(trainer, rows, dataloader.collate_fn, arguments)
    found: dict[str, Any] = {}
    if trainer.compute_metrics is not None and labels is not None:
        prediction = EvalPrediction(ids, labels, inputs)
        found = denumpify_detensorize(trainer.compute_metrics(prediction))
    metrics = {k if k.startswith(f"{prefix}_") else f"{prefix}_{k}": v for k, v in found.items()}
    return EvalLoopOutput(ids, labels, {**metrics, **(losses.metrics or {})}, len(rows))


def _column(rows: Sequence[Mapping[str, Any]], name: str, padding: int) -> np.ndarray:
    """A column of token ids, of shape `(rows, tokens of the longest)`."""
    arrays = [np.asarray(row[name], dtype=np.int64)[None] for row in rows]
    return put_in_order([([n], array) for n, array in enumerate(arrays)], len(rows), padding)


def _generate_all(
    trainer: Any, rows: Any, collate: Callable[[list[Any]], Any], arguments: Mapping[str, Any]
) -> np.ndarray:
    args, handler = trainer.args, trainer.callback_handler
    batches = plan_batches(
        [len(row["input_ids"]) for row in rows],
        args.per_device_eval_batch_size,
        most_new_tokens(unwrap_peft_model(trainer.model).generation_config),
        args.process_index,
        args.world_size,
    )
    handler.eval_dataloader = DataLoader(rows, batch_sampler=batches, collate_fn=collate)
    parts = []
    for numbers, batch in zip(batches, handler.eval_dataloader, strict=True):
        ids = generate(trainer.model, trainer._prepare_inputs(batch), **arguments)
        trainer.control = handler.on_prediction_step(args, trainer.state, trainer.control)
        parts.append((numbers, ids.cpu().numpy()))
    if args.world_size > 1:
        parts = gather_object(parts)
    return put_in_order(parts, len(rows), pad_token_id(trainer))


def pad_token_id(trainer: Any) -> int:
    """The padding token of the trainer's tokenizer, or of its model."""
    return (trainer.processing_class or unwrap_peft_model(trainer.model).config).pad_token_id


def with_padding_token(trainer: Any, ids: np.ndarray) -> np.ndarray:
    """Token ids that a tokenizer can decode, where the parent's loop pads with -100."""
    return np.where(ids == IGNORED_LABEL, pad_token_id(trainer), ids)


def drop_eval_loaders(trainer: Any) -> None:
    """Lets the next evaluation make a loader of its own.

    With `dataloader_persistent_workers` transformers 5.23 keeps the first one, and returns it for
    any other rows, too (`Trainer.get_eval_dataloader`).
    """
    kept = list(vars(trainer).pop("_eval_dataloaders", {}).values())
    others = [loader for loader in trainer.accelerator._dataloaders if loader not in kept]
    trainer.accelerator._dataloaders = others  # It would keep their worker processes.


def draw_as_loader() -> None:
    """Draws the random number that a pass over the evaluation set draws in the parent's loop.

    `torch.utils.data.dataloader._BaseDataLoaderIter` draws the seed of its workers, also without
    any. With it the dropout of the training after an evaluation is that of the parent.
    """
    torch.empty((), dtype=torch.int64).random_()
