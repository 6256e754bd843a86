"""Everything that a class of Hugging Face could refuse in a trial, tried before the first one.

Trial 0 is tried as it is: one training step, two generated tokens, and what the end of a search
does with the model. Every other choice and both ends of every range are given to the real class;
what differs in its modules is trained as well, what differs in its kind of decoding generates.
"""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from transformers import GenerationConfig, Seq2SeqTrainingArguments
from transformers.trainer_utils import unwrap_peft_model

from hpo_summarize.config.idle import ACTS_ONLY
from hpo_summarize.config.parameters import (
    DEPTHS,
    LIMITS,
    LORA_WORDS,
    default_values,
    implied_condition,
    lets_act,
    owner_of,
)
from hpo_summarize.config.schema import Recipe
from hpo_summarize.errors import HpoError, ModelError, Problem, RecipeError
from hpo_summarize.generation import IGNORED_LABEL, with_settings
from hpo_summarize.models.families import require_family
from hpo_summarize.models.lora import load_adapter, merged
from hpo_summarize.models.outputs import difference, first_rows, label_log_probs
from hpo_summarize.models.shared_base import is_as_configured, reloaded
from hpo_summarize.search_space import SearchSpace, TrialSpec
from hpo_summarize.training.arguments import with_values
from hpo_summarize.training.trainer import SummarizationTrainer

_STEPS = 100  # Of the schedules that are made; any number does.
_NEW_TOKENS = 2
# Numbers that change how much a form of decoding does, and whose range is checked elsewhere.
_AMOUNTS = {*LIMITS, "length_penalty"}
# Training arguments that only some optimizers read, with two values that would differ.
_READ_BY_SOME = {"adam_beta1": (0.5, 0.6), "adam_beta2": (0.5, 0.6), "adam_epsilon": (0.1, 0.2)}
# Arguments of an optimizer from which nothing can be told about the others.
_OF_PARAMETERS = {"params", "model", "optimizer_dict"}
_NOISE = 0.02  # Standard deviation of what is added to adapters, most of which begin as zero.
_SAME_LOSS = 1e-3  # Relative; both are sums of float32.
# What peft puts on modules that are named one by one, in the names of parameters. Not ".lora_A":
# `all-linear` takes modules, too, that are called with other inputs only (LED's global attention).
_NEW_ROWS = ".token_adapter."
_ON_NAMED = (".lora_embedding_", ".modules_to_save.", _NEW_ROWS)
_OTHER_MODEL = "take a BART or T5 model, for example"

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


@contextmanager
def refusals(key: str, value: str = "") -> Iterator[None]:
    """Turns what a library raises into an error of the recipe.

    Args:
        key: Key of the setting in the recipe.
        value: What is refused, where it is a single value.

    Raises:
        RecipeError: The library refused it; its own message is in it.
    """
    what = f"{value} is refused" if value else "the values given here are refused"
    with _reported(
        lambda reason: RecipeError([Problem(key, f"{what} ({reason}); fix it or take it out")])
    ):
        yield


@contextmanager
def _tried(what: str, remedy: str = _OTHER_MODEL) -> Iterator[None]:
    """Turns what a library raises into an error of the model: "`what` (its reason); `remedy`"."""
    with _reported(lambda reason: ModelError(f"{what} ({reason}); {remedy}")):
        yield


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
    with _reported(
        lambda reason: RecipeError(
            [Problem("generation", _cannot_generate.format(model_type, reason))]
        )
    ):
        _try_decoding(trainer, baseline, kinds)
    _try_variants(
        space,
        {
            "training": lambda values: _make_optimizer(trainer, values),
            "generation": lambda values: _try_decoding(trainer, values, kinds),
            "lora": lambda values: _try_structure(trainer, values),
            "depth": lambda values: _try_depth(trainer, values),
        },
    )
    problems = [*_idle_in_optimizer(trainer, space, recipe), *_idle_in_decoding(trainer, recipe)]
    if problems:
        raise RecipeError(problems)
    trainer.create_accelerator_and_postprocess()


_cannot_generate = (
    "a '{}' model cannot generate with the values given here ({}); fix them, or take another model"
)


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
            with refusals(f"space.{name}", repr(value)):
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


def _differ(
    trainer: SummarizationTrainer, args: Seq2SeqTrainingArguments, first: Values, second: Values
) -> bool:
    """Whether an optimizer gets other arguments; True where that cannot be told."""
    one, other = (
        trainer.get_optimizer_cls_and_kwargs(with_values(args, values), trainer.model)[1]
        for values in (first, second)
    )
    return bool(_OF_PARAMETERS & one.keys()) or one != other


# Decoding.


def _try_decoding(trainer: SummarizationTrainer, values: Values, kinds: set[tuple]) -> None:
    """Makes the generation config of a trial, and generates two tokens where its kind is new.

    Args:
        trainer: Has the model and the rows.
        values: Values of a trial.
        kinds: The kinds that were tried already; changed in place.
    """
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
    batch = first_rows(trainer.eval_dataset, trainer.data_collator)
    inputs = require_family(model.config).generation_inputs(batch or {})
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
        other = implied_condition(name)
        if other is None or other in given or value in (None, default_values().get(name)):
            continue
        if not lets_act(name, getattr(config, other)):
            yield Problem(f"generation.{name}", f"{ACTS_ONLY[other]} (value {value!r})")


# The modules of a model.


def _build(trainer: SummarizationTrainer, values: Values) -> Any:
    torch.manual_seed(trainer.args.seed)  # Weights that no checkpoint holds are drawn.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = trainer.model_init(SimpleNamespace(params=dict(values)))
    return model.to(trainer.args.device)


def _try_depth(trainer: SummarizationTrainer, values: Values) -> None:
    """Makes a model of another depth, which must be the one that its configuration describes."""
    with torch.random.fork_rng([]):
        model = _build(trainer, values)
    base = model.unload() if isinstance(model, PeftModel) else model
    if not is_as_configured(base):
        raise ModelError(
            f"model: a '{base.config.model_type}' model of another depth cannot be loaded again; "
            "take encoder_layers and decoder_layers out of the space"
        )


def _try_structure(trainer: SummarizationTrainer, values: Values) -> None:
    """One training step on the first rows, and then what the end of a search does with the model.

    The step has a loss and gradients, and no optimizer. The model is compared, by the probabilities
    it gives to labels, with the one that would be loaded from its checkpoint; with LoRA also with
    its adapter on a fresh base, and with the merged model.

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
    with torch.random.fork_rng([args.device] if args.device.type == "cuda" else []):
        own.to("cpu")  # One model at a time is on a device, as in training.
        try:
            trainer.model = _build(trainer, values)
            _train_one_step(trainer, batch)
            _try_end(trainer, values, batch)
        finally:
            trainer.model = own.to(args.device)


def _train_one_step(trainer: SummarizationTrainer, batch: Mapping[str, torch.Tensor]) -> None:
    model, args = trainer.model, trainer.args
    name = f"model: a '{unwrap_peft_model(model).config.model_type}' model"
    inputs = {key: value.to(args.device) for key, value in batch.items()}
    with _tried(f"{name} cannot be trained"):
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
    model, smoothing = trainer.model.eval(), trainer.args.label_smoothing_factor
    base = unwrap_peft_model(model)
    family = require_family(base.config)
    if family.has_own_loss(base):
        if smoothing:
            raise ModelError(
                f"{name} is trained with a loss of its own, in which label smoothing has no part "
                f"(value {smoothing}); take training.label_smoothing_factor out"
            )
        return
    with torch.no_grad():
        shifted = family.decoder_inputs(base, inputs["labels"])  # FSMT takes no labels alone.
        outputs = model(**inputs, decoder_input_ids=shifted, use_cache=False)
    theirs, logits = outputs.loss.item(), outputs.logits.flatten(0, 1).float()
    ours = torch.nn.functional.cross_entropy(logits, inputs["labels"].flatten()).item()
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


def _try_end(trainer: SummarizationTrainer, values: Values, batch: Mapping[str, Any]) -> None:
    model = trainer.model
    if not isinstance(model, PeftModel):
        _compare_reloaded(model, batch, label_log_probs(model, batch))
        return
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(_NOISE * torch.randn_like(weight))
    expected = label_log_probs(model, batch)
    with tempfile.TemporaryDirectory() as folder:
        with _tried("lora: the adapters cannot be saved and loaded", "check the keys of lora"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model.to("cpu").save_pretrained(folder)
            kept = _build(trainer, values)
            load_adapter(kept, Path(folder))
    _compare("lora: an adapter that is loaded on a fresh base", kept, batch, expected)
    del kept
    whole = merged(model.to(trainer.args.device))
    _compare("lora: the model with its adapters merged", whole, batch, expected)
    _compare_reloaded(whole, batch, expected)


def _compare_reloaded(model: Any, batch: Mapping[str, Any], expected: list[float]) -> None:
    name = f"model: a '{model.config.model_type}' model that is loaded again"
    with _tried(f"{name} cannot be used"):
        _compare(name, reloaded(model), batch, expected)


def _compare(what: str, model: Any, batch: Mapping[str, Any], expected: list[float]) -> None:
    if differs := difference(model, batch, expected):
        raise ModelError(
            f"{what} is not the one that was trained ({differs}), so that the score of a trial "
            "would not be that of its model; check lora.target_modules, lora.modules_to_save and "
            "the other keys of lora, or take another model"
        )
