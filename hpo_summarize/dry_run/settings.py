"""Everything that a class of Hugging Face could refuse in a trial, tried before the first one.

Trial 0 is tried as it is, and then with every choice and both ends of every range of the space, so
that a missing package or a misspelt option is found at once and not in the middle of the night.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, Seq2SeqTrainingArguments
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.config.idle import ACTS_ONLY
from hpo_summarize.config.parameters import (
    DEPTHS,
    LORA_WORDS,
    default_values,
    implied_condition,
    lets_act,
    owner_of,
)
from hpo_summarize.config.schema import Recipe
from hpo_summarize.dry_run.structure import tried, try_structure
from hpo_summarize.errors import HpoError, Problem, RecipeError
from hpo_summarize.generation import with_settings
from hpo_summarize.search_space import SearchSpace, TrialSpec
from hpo_summarize.training.arguments import with_values
from hpo_summarize.training.trainer import SummarizationTrainer

_STEPS = 100  # Of the schedules that are made; any number does.
_NEW_TOKENS, _ROWS = 2, 2  # Generated; some forms of decoding take one row only.
# Training arguments that only some optimizers read, with two values that would differ.
_READ_BY_SOME = {"adam_beta1": (0.5, 0.6), "adam_beta2": (0.5, 0.6), "adam_epsilon": (0.1, 0.2)}
# Arguments of an optimizer from which nothing can be told about the others.
_OF_PARAMETERS = {"params", "model", "optimizer_dict"}

Values = Mapping[str, Any]


@contextmanager
def refusals(key: str, value: str = "") -> Iterator[None]:
    """Turns what a library raises into an error of the recipe.

    Args:
        key: Key of the setting in the recipe.
        value: What is refused, where it is a single value.

    Raises:
        RecipeError: The library refused it; its own message is in it.
    """
    try:
        yield
    except (HpoError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # ValueError, TypeError, ImportError, KeyError and many others.
        reason = " ".join((str(error).strip() or type(error).__name__).split())
        what = f"{value} is refused" if value else "the values given here are refused"
        message = f"{what} ({type(error).__name__}: {reason:.300}); mend it or take it out"
        raise RecipeError([Problem(key, message)]) from error


def try_arguments(
    recipe: Recipe, build: Callable[[], Seq2SeqTrainingArguments], space: SearchSpace
) -> None:
    """Makes the fixed decoding, and the training arguments of trial 0 and of its variants.

    Needs no model.

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
    _try_variants(space, "training", lambda values: _with_training(args, values))


def try_settings(trainer: SummarizationTrainer, space: SearchSpace, recipe: Recipe) -> None:
    """Makes optimizers, schedules and adapters, trains one step, and generates two tokens.

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
    try_structure(trainer, baseline)
    _try_generation(trainer, baseline, recipe)
    _try_variants(space, "training", lambda values: _make_optimizer(trainer, values))
    _try_variants(space, "generation", lambda values: _generate(trainer, values))
    _try_variants(space, "structure", lambda values: try_structure(trainer, values))
    problems = [*_idle_in_optimizer(trainer, space, recipe), *_idle_in_decoding(trainer, recipe)]
    if problems:
        raise RecipeError(problems)
    trainer.create_accelerator_and_postprocess()


def _try_variants(space: SearchSpace, owner: str, attempt: Callable[[Values], Any]) -> None:
    problems = []
    for name, value, values in space.variants():
        if _tried_as(name) != owner:
            continue
        try:
            with refusals(f"space.{name}", repr(value)):
                attempt(values)
        except RecipeError as error:
            problems += error.problems
        except HpoError as error:
            problems.append(Problem(f"space.{name}", f"{value!r} is refused: {error}"))
    if problems:
        raise RecipeError(problems)


def _tried_as(name: str) -> str | None:
    """The owner of a name, or "structure" where its value decides which modules a model has."""
    if name in LORA_WORDS:
        return None  # Sizes, which no class refuses.
    return "structure" if owner_of(name) == "lora" or name in DEPTHS else owner_of(name)


def _with_training(args: Seq2SeqTrainingArguments, values: Values) -> Seq2SeqTrainingArguments:
    return with_values(args, TrialSpec.of(values).training, args.world_size)


def _make_optimizer(trainer: SummarizationTrainer, values: Values) -> None:
    """Makes everything that a training begins with; it takes memory only with the first step."""
    own = trainer.args
    try:
        trainer.args = _with_training(own, values)
        # Every making of training arguments takes the state of the accelerator away.
        trainer.create_accelerator_and_postprocess()
        trainer.get_train_dataloader()
        trainer.get_eval_dataloader()
        trainer.create_optimizer_and_scheduler(_STEPS)
    finally:
        trainer.args = own
        trainer.optimizer = trainer.lr_scheduler = None


def _try_generation(trainer: SummarizationTrainer, values: Values, recipe: Recipe) -> None:
    """Generates with the fixed decoding, and blames the model where it cannot generate at all."""
    try:
        with refusals("generation"):
            _generate(trainer, values)
    except RecipeError:
        model = unwrap_peft_model(trainer.model)
        own = model.generation_config
        given, saved = recipe.generation.settings(), own.to_dict()
        ids = {k: v for k, v in saved.items() if k.endswith("_token_id") and k not in given}
        try:
            model.generation_config = GenerationConfig(**ids)
            with tried(f"model: a '{model.config.model_type}' model cannot generate"):
                _generate(trainer, {})
        finally:
            model.generation_config = own
        raise


def _generate(trainer: SummarizationTrainer, values: Values) -> None:
    """Generates the start of two summaries with the decoding of a trial, which must be savable."""
    model = unwrap_peft_model(trainer.model)
    decoding = TrialSpec.of(values).generation
    config = with_settings(model.generation_config, decoding)[0]
    config.validate(strict=True)
    config.max_length, config.max_new_tokens = None, _NEW_TOKENS
    config.min_length = config.min_new_tokens = None
    rows = range(min(_ROWS, len(trainer.eval_dataset)))
    batch = trainer.data_collator([trainer.eval_dataset[row] for row in rows])
    inputs = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model.generate(**inputs, generation_config=config)
    finally:
        model.train(was_training)


def _idle_in_optimizer(
    trainer: SummarizationTrainer, space: SearchSpace, recipe: Recipe
) -> Iterator[Problem]:
    """Fixed and searched values that no optimizer of this search reads."""
    variants = [values for name, _, values in space.variants() if name == "optim"]
    everything = [_with_training(trainer.args, v) for v in variants or [space.baseline()]]
    optimizers = " or ".join(sorted({str(args.optim.value) for args in everything}))

    def acts(first: Values, second: Values) -> bool:
        return any(_differ(trainer, args, first, second) for args in everything)

    fixed = recipe.training.settings()
    options = [part for part in (fixed.get("optim_args") or "").replace(" ", "").split(",") if part]
    for option in options:
        others = ",".join(other for other in options if other != option)
        if not acts({"optim_args": ",".join(options)}, {"optim_args": others or None}):
            message = f"{option!r} changes nothing in the optimizer {optimizers}"
            yield Problem("training.optim_args", f"{message}; correct its name or take it out")
    for name, (one, other) in _READ_BY_SOME.items():
        section = "space" if name in space.parameters else "training" if name in fixed else None
        if section and not acts({name: one}, {name: other}):
            message = f"the optimizer {optimizers} does not read it"
            yield Problem(f"{section}.{name}", f"{message}; take it out or change optim")
    if fixed.get("optim_target_modules") and not acts({}, {}):
        message = f"only GaLore and APOLLO read it, and the optimizer is {optimizers}"
        yield Problem("training.optim_target_modules", f"{message}; take it out or change optim")


def _idle_in_decoding(trainer: SummarizationTrainer, recipe: Recipe) -> Iterator[Problem]:
    """Fixed values that act only with a `do_sample` or `num_beams` that the checkpoint has not."""
    config = unwrap_peft_model(trainer.model).generation_config
    given = {**recipe.generation.settings(), **recipe.space}
    for name, value in recipe.generation.settings().items():
        other = implied_condition(name)
        if other is None or other in given or value in (None, default_values().get(name)):
            continue
        if not lets_act(name, getattr(config, other)):
            yield Problem(f"generation.{name}", f"{ACTS_ONLY[other]} (value {value!r})")


def _differ(
    trainer: SummarizationTrainer, args: Seq2SeqTrainingArguments, first: Values, second: Values
) -> bool:
    """Whether an optimizer gets other arguments; True where that cannot be told."""
    one, other = (
        trainer.get_optimizer_cls_and_kwargs(with_values(args, values), trainer.model)[1]
        for values in (first, second)
    )
    return bool(_OF_PARAMETERS & one.keys()) or one != other
