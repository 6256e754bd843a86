"""Everything that a class of Hugging Face could refuse in a trial, tried before the first one.

Trial 0 is tried as it is: one training step, two generated tokens, and what the end of a search
does with the model. Every other choice and both ends of every range are given to the real class;
what differs in its modules is trained as well, what differs in its kind of decoding generates.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationConfig, Seq2SeqTrainingArguments
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.config.parameters import (
    DEPTHS,
    LORA_WORDS,
    condition_of,
    default_values,
    owner_of,
)
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import HpoError, ModelError, Problem, RecipeError
from hpo_summarize.generation import IGNORED_LABEL, with_settings
from hpo_summarize.models.families import require_family
from hpo_summarize.models.outputs import check_gradients, check_saved, first_rows
from hpo_summarize.search_space import SearchSpace, TrialSpec
from hpo_summarize.training.arguments import with_values
from hpo_summarize.training.trainer import SummarizationTrainer

_STEPS = 100  # Of the schedules that are made; any number does.
_TOKENS, _NEW_TOKENS = 16, 2  # Read of each row, and generated.
# Numbers that change how much a form of decoding does, and whose range is checked elsewhere.
_AMOUNTS = {
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "num_beams", "length_penalty"),
    *("repetition_penalty", "no_repeat_ngram_size", "max_new_tokens"),
}
# Training arguments that only some optimizers read, with two values that would differ.
_READ_BY_SOME = {"adam_beta1": (0.5, 0.6), "adam_beta2": (0.5, 0.6), "adam_epsilon": (0.1, 0.2)}
# Arguments of an optimizer that say nothing about the others.
_OF_PARAMETERS = {"params", "model", "optimizer_dict"}

Values = Mapping[str, Any]


@contextmanager
def _reported(report: Callable[[str], HpoError]) -> Iterator[None]:
    """Turns what a library raises into an error of ours, made from its type and message."""
    try:
        yield
    except (HpoError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # ValueError, TypeError, ImportError, KeyError and many others.
        reason = " ".join((str(error).strip() or type(error).__name__).split())
        raise report(f"{type(error).__name__}: {reason:.300}") from error


def refusals(key: str, what: str = "the values given here are refused") -> AbstractContextManager:
    """Turns what a library raises into a `RecipeError`.

    Args:
        key: Key of the setting in the recipe.
        what: The start of the message.
    """
    return _reported(
        lambda reason: RecipeError([Problem(key, f"{what} ({reason}); fix it or take it out")])
    )


def _tried(what: str) -> AbstractContextManager:
    """Turns what a library raises into a `ModelError` that begins with `what`."""
    remedy = "take a BART or T5 model, for example"
    return _reported(lambda reason: ModelError(f"{what} ({reason}); {remedy}"))


def try_arguments(
    recipe: Recipe, build: Callable[[], Seq2SeqTrainingArguments], space: SearchSpace
) -> None:
    """Makes the fixed decoding, and the training arguments of all variants, without a model.

    Args:
        recipe: The recipe, whose fixed decoding is tried.
        build: Makes the training arguments that the recipe fixes.
        space: The search space, whose parameters are tried.

    Raises:
        RecipeError: Lists every value that the arguments' class refuses.
    """
    with refusals("generation"):
        GenerationConfig(**recipe.generation.settings()).validate()
    with refusals("training"):
        args = build()
        _with_training(args, space.baseline())
    _try_variants(space, {"training": lambda values: _with_training(args, values)})


def try_settings(trainer: SummarizationTrainer, space: SearchSpace, recipe: Recipe) -> None:
    """Makes optimizers, schedules, models and adapters, trains one step, generates two tokens.

    What happens at the end of a search is tried, too: an adapter is saved, loaded and merged, and
    the model that would be loaded from disk is compared with the one in memory.

    Args:
        trainer: A trainer with the model of the recipe's fixed values.
        space: The search space, whose parameters are tried.
        recipe: The recipe, whose sections say which fixed values must act.

    Raises:
        RecipeError: Lists every value that is refused or that changes nothing.
        ModelError: The model cannot be trained, or an adapter cannot be made, saved or merged.
    """
    baseline = space.baseline()
    if trainer.model is None or trainer.state.max_steps:  # Of a trial that it has run.
        trainer.model = trainer.call_model_init()
    with refusals("training"):
        _make_optimizer(trainer, baseline)
    _try_structure(trainer, baseline)
    kinds: set[tuple] = set()
    model_type = unwrap_peft_model(trainer.model).config.model_type
    with refusals("generation", f"a '{model_type}' model cannot generate with the values here"):
        _try_decoding(trainer, baseline, kinds)
    _try_variants(
        space,
        {
            "training": lambda values: _make_optimizer(trainer, values),
            "generation": lambda values: _try_decoding(trainer, values, kinds),
            "lora": lambda values: _try_structure(trainer, values),
            "depth": lambda values: _build(trainer, values),
        },
    )
    problems = [*_idle_in_optimizer(trainer, space, recipe), *_idle_in_decoding(trainer, recipe)]
    if problems:
        raise RecipeError(problems)
    trainer.create_accelerator_and_postprocess()


def _try_variants(space: SearchSpace, attempts: Mapping[str, Callable[[Values], Any]]) -> None:
    """Tries all variants of trial 0, each by what its value changes.

    Raises:
        RecipeError: Lists every value that is refused.
    """
    problems = []
    for name, value, values in space.variants():
        attempt = attempts.get(_changed_by(name))
        if attempt is None or values == space.baseline():
            continue
        try:
            with refusals(f"space.{name}", f"{value!r} is refused"):
                attempt(values)
        except RecipeError as error:
            problems += error.problems
        except HpoError as error:
            problems.append(Problem(f"space.{name}", f"{value!r} is refused: {error}"))
    if problems:
        raise RecipeError(problems)


def _changed_by(name: str) -> str:
    """The owner of a name, "depth", or "" for sizes of adapters and dropout, never refused."""
    if name in DEPTHS:
        return "depth"
    owner = owner_of(name)
    return "" if owner is None or owner == "model" or name in LORA_WORDS else owner


# Training arguments and optimizers.


def _with_training(args: Seq2SeqTrainingArguments, values: Values) -> Seq2SeqTrainingArguments:
    return with_values(args, TrialSpec.of(values).training, args.world_size)


def _make_optimizer(trainer: SummarizationTrainer, values: Values) -> None:
    """Makes everything that a training begins with; it takes memory only with the first step."""
    own = trainer.args
    try:
        trainer.args = _with_training(own, values)
        # New training arguments reset the state of the accelerator.
        trainer.create_accelerator_and_postprocess()
        trainer.get_train_dataloader()
        trainer.get_eval_dataloader()
        trainer.create_optimizer_and_scheduler(_STEPS)
    finally:
        trainer.args = own
        trainer.optimizer = trainer.lr_scheduler = None


def _idle_in_optimizer(
    trainer: SummarizationTrainer, space: SearchSpace, recipe: Recipe
) -> Iterator[Problem]:
    """Fixed and searched values that no optimizer of this search reads."""
    variants = [values for name, _, values in space.variants() if name == "optim"]
    everything = [_with_training(trainer.args, v) for v in variants or [space.baseline()]]
    optimizers = " or ".join(sorted({str(args.optim.value) for args in everything}))

    def is_idle(one: Values, other: Values) -> bool:
        return not any(_differ(trainer, args, one, other) for args in everything)

    fixed = recipe.training.settings()
    unread = f"the optimizer {optimizers} does not read it; take it out or change optim"
    options = [part for part in (fixed.get("optim_args") or "").replace(" ", "").split(",") if part]
    for option in options:
        rest = ",".join(other for other in options if other != option) or None
        if is_idle({}, {"optim_args": rest}):
            message = f"{option!r} changes nothing in the optimizer {optimizers}"
            yield Problem("training.optim_args", f"{message}; correct its name or take it out")
    for name, (one, other) in _READ_BY_SOME.items():
        section = "space" if name in space.parameters else "training" if name in fixed else None
        if section and is_idle({name: one}, {name: other}):
            yield Problem(f"{section}.{name}", unread)
    if fixed.get("optim_target_modules") and is_idle({}, {}):
        yield Problem("training.optim_target_modules", unread)


def _differ(trainer: SummarizationTrainer, args: Seq2SeqTrainingArguments, *both: Values) -> bool:
    """Whether an optimizer gets other arguments; True where that is unknown."""
    one, other = (
        trainer.get_optimizer_cls_and_kwargs(with_values(args, values), trainer.model)[1]
        for values in both
    )
    return bool(_OF_PARAMETERS & one.keys()) or one != other


# Decoding.


def _try_decoding(trainer: SummarizationTrainer, values: Values, kinds: set[tuple]) -> None:
    """Makes the generation config of a trial, and generates where its kind is not in `kinds`."""
    model = unwrap_peft_model(trainer.model)
    decoding = TrialSpec.of(values).generation
    config = with_settings(model.generation_config, decoding)[0]
    config.validate(strict=True)
    others = {name: repr(value) for name, value in decoding.items() if name not in _AMOUNTS}
    kind = (config.get_generation_mode(), *sorted(others.items()))
    if kind in kinds:
        return
    config.max_length, config.max_new_tokens = None, _NEW_TOKENS
    config.min_length = config.min_new_tokens = None
    batch = first_rows(trainer.eval_dataset, trainer.data_collator, _TOKENS)
    if batch is None:
        return
    inputs = require_family(model.config).generation_inputs(batch)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model.generate(
                **{key: tensor.to(model.device) for key, tensor in inputs.items()},
                generation_config=config,
            )
    finally:
        model.train(was_training)
    kinds.add(kind)


def _idle_in_decoding(trainer: SummarizationTrainer, recipe: Recipe) -> Iterator[Problem]:
    """Fixed values that act only with a `do_sample` or `num_beams` the checkpoint does not have."""
    config = unwrap_peft_model(trainer.model).generation_config
    given = {**recipe.generation.settings(), **recipe.space}
    for name, value in recipe.generation.settings().items():
        needs = condition_of(name)
        if needs is None or needs.name in given or value in (None, default_values().get(name)):
            continue
        if not needs.holds(getattr(config, needs.name)):
            yield Problem(f"generation.{name}", f"{needs.advice} (value {value!r})")


# The modules of a model.


def _build(trainer: SummarizationTrainer, values: Values) -> Any:
    torch.manual_seed(trainer.args.seed)  # Weights that no checkpoint holds are drawn.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer.model_init(SimpleNamespace(spec=TrialSpec.of(values)))


def _try_structure(trainer: SummarizationTrainer, values: Values) -> None:
    """One training step on the first rows, and then what the end of a search does with the model.

    The step has a loss and gradients, and no optimizer.

    Raises:
        ModelError: The model cannot be trained, saved, loaded or merged.
    """
    batch = first_rows(trainer.train_dataset, trainer.data_collator, _TOKENS)
    if batch is None:
        return
    own, args = trainer.model, trainer.args
    name = f"model: a '{unwrap_peft_model(own).config.model_type}' model"
    with torch.random.fork_rng([args.device] if args.device.type == "cuda" else []):
        own.to("cpu")  # One model at a time is on a device, as in training.
        try:
            trainer.model = _build(trainer, values).to(args.device)
            with _tried(f"{name} cannot be trained"):
                loss = _train_one_step(trainer, batch)
            if not math.isfinite(loss):
                raise ModelError(
                    f"{name} gives a training loss of {loss} on the first rows; take another "
                    "checkpoint, or train in another precision"
                )
            check_gradients(trainer.model)
            with _tried(f"{name} cannot be saved and loaded again"):
                check_saved(trainer.model, batch, lambda: _build(trainer, values).to(args.device))
        finally:
            trainer.model = own.to(args.device)


def _train_one_step(trainer: SummarizationTrainer, batch: Mapping[str, torch.Tensor]) -> float:
    model, args = trainer.model, trainer.args
    base = unwrap_peft_model(model)
    if args.label_smoothing_factor and require_family(base.config).has_own_loss(base):
        raise ModelError(
            f"model: a '{base.config.model_type}' model is trained with a loss of its own, in "
            f"which label smoothing has no part (value {args.label_smoothing_factor}); take "
            "training.label_smoothing_factor out"
        )
    if args.activation_checkpointing:
        model.activation_checkpointing_enable()
    inputs = {key: value.to(args.device) for key, value in batch.items()}
    n_tokens = inputs["labels"].ne(IGNORED_LABEL).sum()
    model.train()
    with trainer.accelerator.autocast():
        loss = trainer.compute_loss(model, inputs, num_items_in_batch=n_tokens)
    loss.backward()
    return loss.item()
