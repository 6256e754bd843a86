"""What a trial and its end do with the modules of a model, tried once before the first trial."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.errors import HpoError, ModelError
from hpo_summarize.generation import IGNORED_LABEL
from hpo_summarize.models.families import decoder_inputs, has_own_loss
from hpo_summarize.models.lora import load_adapter, merged
from hpo_summarize.models.outputs import difference, first_rows, label_log_probs
from hpo_summarize.models.shared_base import reloaded, unshare
from hpo_summarize.search_space import TrialSpec
from hpo_summarize.training.ddp import FollowedTrial
from hpo_summarize.training.trainer import SummarizationTrainer

_NOISE = 0.02  # Standard deviation of what is added to adapters, most of which begin as zero.
_SAME_LOSS = 1e-3  # Relative; both are sums of float32.
# What peft puts on modules that are named one by one, in the names of parameters. Not ".lora_A":
# `all-linear` takes modules, too, that are called with other inputs only (LED's global attention).
_NEW_ROWS = ".token_adapter."
_ON_NAMED = (".lora_embedding_", ".modules_to_save.", _NEW_ROWS)
_OTHER_MODEL = "take a BART or T5 model, for example"


@contextmanager
def tried(what: str, remedy: str = _OTHER_MODEL) -> Iterator[None]:
    """Turns what a library raises into an error of the model.

    Raises:
        ModelError: "`what` (the library's reason); `remedy`".
    """
    try:
        yield
    except (HpoError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join((str(error).strip() or type(error).__name__).split())
        raise ModelError(f"{what} ({type(error).__name__}: {reason:.300}); {remedy}") from error


def try_structure(trainer: SummarizationTrainer, values: Mapping[str, Any]) -> None:
    """One training step on the first rows, and then what the end of a search does with the model.

    The step has a loss and gradients, and no optimizer. The model is compared, by what it says of
    the rows, with the one that would be loaded from its checkpoint; with LoRA also with its
    adapter on a fresh base, and with the merged model. The rows are cut short, as long ones take
    long and tell no more.

    Args:
        trainer: Has the recipe's model, rows and arguments.
        values: Values of a trial.

    Raises:
        ModelError: The model cannot be trained, saved, loaded or merged.
    """
    batch = first_rows(trainer.train_dataset, trainer.data_collator)
    if batch is None:
        return
    own, args = trainer.model, trainer.args

    def build() -> Any:
        torch.manual_seed(args.seed)  # Weights that no checkpoint holds are drawn.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return trainer.model_init(FollowedTrial(TrialSpec.of(values))).to(args.device)

    with torch.random.fork_rng([args.device] if args.device.type == "cuda" else []):
        own.to("cpu")  # One model at a time is on a device, as in training.
        try:
            trainer.model = build()
            _train_one_step(trainer, batch)
            _try_end(trainer.model, batch, build)
        finally:
            trainer.model = own.to(args.device)


def _train_one_step(trainer: SummarizationTrainer, batch: Mapping[str, torch.Tensor]) -> None:
    model, args = trainer.model, trainer.args
    name = f"model: a '{unwrap_peft_model(model).config.model_type}' model"
    inputs = {key: value.to(args.device) for key, value in batch.items()}
    with tried(f"{name} cannot be trained"):
        _check_loss(trainer, name, inputs)
        if args.activation_checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        with trainer.accelerator.autocast():
            loss = trainer.compute_loss(
                model, dict(inputs), num_items_in_batch=inputs["labels"].ne(IGNORED_LABEL).sum()
            )
        loss.backward()
    if not math.isfinite(loss.item()):
        raise ModelError(
            f"{name} gives a training loss of {loss.item()} on the first rows; take another "
            "checkpoint, or train in another precision"
        )
    _check_gradients(model)
    model.zero_grad()


def _check_loss(trainer: SummarizationTrainer, name: str, inputs: Mapping[str, Any]) -> None:
    """Refuses a model whose forward measures another loss than the one that would be used."""
    model = trainer.model.eval()
    base = unwrap_peft_model(model)
    if has_own_loss(base) and trainer.args.label_smoothing_factor:
        raise ModelError(
            f"{name} is trained with a loss of its own, in which label smoothing has no part "
            f"(value {trainer.args.label_smoothing_factor}); take training.label_smoothing_factor "
            "out"
        )
    with torch.no_grad():
        shifted = decoder_inputs(base, inputs["labels"])  # FSMT takes no labels alone.
        theirs = model(**inputs, decoder_input_ids=shifted, use_cache=False).loss.item()
        with trainer.without_smoothing():
            ours = trainer.compute_loss(model, dict(inputs)).item()
    if not math.isclose(theirs, ours, rel_tol=_SAME_LOSS, abs_tol=_SAME_LOSS):
        raise ModelError(
            f"{name} measures a loss of its own ({theirs:.4g}) that is not the cross entropy of "
            f"its tokens ({ours:.4g}), and would be trained with the latter; {_OTHER_MODEL}"
        )


def _check_gradients(model: Any) -> None:
    """Refuses adapters on modules that the model does not call, such as `shared` of BART and T5."""
    reached: dict[tuple[str, str], bool] = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad and (mark := next((m for m in _ON_NAMED if m in name), None)):
            key = mark, name.partition(mark)[0].rpartition(".")[2]
            reached[key] = reached.get(key, False) or weight.grad is not None
    for (mark, module), is_reached in reached.items():
        if is_reached:
            continue
        if mark == _NEW_ROWS:
            raise ModelError(
                "lora: peft does not train the embeddings of added tokens in a "
                f"'{unwrap_peft_model(model).config.model_type}' model (it puts them on "
                f"'{module}', which the model does not call); leave the tokens that its tokenizer "
                "lacks out of data.special_tokens, or train without LoRA"
            )
        raise ModelError(
            f"lora: no output depends on what would be trained in '{module}', since the model does "
            "not call it under that name; name the modules that it calls ('embed_tokens', "
            "'lm_head'), or take it out: the embeddings of added tokens are trained in any case"
        )


def _try_end(model: Any, batch: Mapping[str, Any], build: Callable[[], Any]) -> None:
    whole = model
    if isinstance(model, PeftModel):
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.add_(_NOISE * torch.randn_like(weight))
    expected = label_log_probs(model, batch)
    if isinstance(model, PeftModel):
        device = next(model.parameters()).device
        model.to("cpu")
        kept = _kept(model, build)
        _compare("lora: an adapter that is loaded on a fresh base", kept, batch, expected)
        del kept
        model.to(device)
        unshare(model)  # The weights below the adapters may be those of all trials.
        whole = merged(model)
        _compare("lora: the model with its adapters merged", whole, batch, expected)
    name = f"model: a '{whole.config.model_type}' model that is loaded again"
    with tried(f"{name} cannot be used"):
        _compare(name, reloaded(whole), batch, expected)


def _kept(model: PeftModel, build: Callable[[], Any]) -> Any:
    """A fresh model with the adapter of another one, as kept weights are loaded."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with tried("lora: the adapters cannot be saved and loaded", "check the keys of lora"):
            model.save_pretrained(folder)
            fresh = build()
            load_adapter(fresh, Path(folder))
    return fresh


def _compare(what: str, model: Any, batch: Mapping[str, Any], expected: list[float]) -> None:
    if differs := difference(model, batch, expected):
        raise ModelError(
            f"{what} is not the one that was trained ({differs}), so that the score of a trial "
            "would not be that of its model; check lora.target_modules, lora.modules_to_save and "
            "the other keys of lora, or take another model"
        )
