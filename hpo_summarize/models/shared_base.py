"""The weights of a checkpoint: read from disk, and shared by the models of many trials."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from transformers import (
    AutoModelForSeq2SeqLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hpo_summarize.config.schema import ModelSection
from hpo_summarize.errors import ModelError
from hpo_summarize.models.config import find_place, load_config, loading_options, not_loaded
from hpo_summarize.models.depth import spread_layers
from hpo_summarize.models.tokenizer import check_fits, n_rows, new_tokens


@dataclass(frozen=True)
class _Resized:
    """The weights that got new rows, and the random generator before and after drawing those."""

    before: torch.Tensor
    after: torch.Tensor
    weights: dict[str, torch.Tensor]


class PretrainedBase:
    """The weights of a recipe's checkpoint, read once for all trials that freeze them.

    Every model it builds is a module tree of its own, made from its own configuration, with its
    own dropout and depth; only the memory of the weights is shared. So nobody may write into them:
    what is trained, and whatever is to be merged, takes a copy first (`unshare`).

    Args:
        section: Names the checkpoint.
        tokenizer: The one that the models are used with.

    Raises:
        ModelError: The checkpoint cannot be loaded, or does not belong to the tokenizer.
    """

    def __init__(self, section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config = load_config(section)
        model = load_pretrained(section, copy.deepcopy(self._config), tokenizer)
        self._class = type(model)
        self._generation_config = model.generation_config
        self._weights = _saved_tensors(model)
        self._n_rows = max(n_rows(tokenizer), n_embeddings(model))
        self._resized: _Resized | None = None
        self._sums = self._checksums()
        self.new_tokens = new_tokens(section, tokenizer, n_embeddings(model))

    def config(self) -> PretrainedConfig:
        """The configuration of the checkpoint, a new object at every call."""
        return copy.deepcopy(self._config)

    def build(self, config: PretrainedConfig, depth: Mapping[str, int]) -> PreTrainedModel:
        """A model on the shared weights, as it would come from the disk, with a row for each token.

        Args:
            config: From `config`, with the dropout wanted; the depth is written into it.
            depth: Numbers of layers by their names in the configuration; see `with_depth`.

        Raises:
            ModelError: Somebody has written into the shared weights.
        """
        if self._checksums() != self._sums:
            raise ModelError(
                "the pretrained weights that all trials share were changed in place, by a merge of "
                "adapters perhaps; call unshare(model) on the model before it is merged"
            )
        weights, drawn = self._spread(config, depth), self._drawn_before()
        if drawn is not None:
            weights |= drawn.weights
            config.vocab_size = self._n_rows
            torch.set_rng_state(drawn.after)
        model = _from_memory(self._class, config, weights)
        # Where it came from is also what peft writes into the files of its adapters.
        model.name_or_path = model.config.name_or_path = self._config.name_or_path
        model.generation_config = copy.deepcopy(self._generation_config)
        _keep_separate_head(model)
        if drawn is not None:  # As after a resize, encoder and decoder then share one module.
            model.set_input_embeddings(model.get_input_embeddings())
        elif n_embeddings(model) < self._n_rows:
            self._resize(model)
        return model

    def _drawn_before(self) -> _Resized | None:
        """The new rows as the random generator would give them now, if they were drawn already.

        Every trial begins with the same seed, and to draw them takes longer than all the rest.
        """
        known = self._resized
        same = known is not None and torch.equal(known.before, torch.get_rng_state())
        return known if same else None

    def _resize(self, model: PreTrainedModel) -> None:
        before, old = torch.get_rng_state(), _saved_tensors(model)
        grow(model, self._n_rows)
        new = {k: v for k, v in _saved_tensors(model).items() if v.shape != old[k].shape}
        self._resized = _Resized(before, torch.get_rng_state(), new)
        self._sums = self._checksums()

    def _spread(
        self, config: PretrainedConfig, depth: Mapping[str, int]
    ) -> dict[str, torch.Tensor]:
        """The weights by their names in a model of another depth; repeated layers share them."""
        weights = dict(self._weights)
        for key, wanted in depth.items():
            stack = f".{key.removesuffix('_layers')}.layers."
            chosen = spread_layers(getattr(config, key), wanted)
            setattr(config, key, wanted)
            spread = {name: tensor for name, tensor in weights.items() if stack not in name}
            for name in weights.keys() - spread.keys():
                before, _, rest = name.partition(stack)
                number, _, after = rest.partition(".")
                for new, old in enumerate(chosen):
                    if old == int(number):
                        spread[f"{before}{stack}{new}.{after}"] = weights[name]
            weights = spread
        return weights

    def _checksums(self) -> list[int]:
        resized = self._resized.weights if self._resized else {}
        return [_checksum(weight) for weight in (*self._weights.values(), *resized.values())]


def reloaded(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it comes back from a checkpoint of it; its weights stay in the same memory.

    Raises:
        ModelError: transformers cannot load what it would write.
    """
    return _from_memory(
        type(model), type(model.config).from_dict(model.config.to_dict()), _saved_tensors(model)
    )


def _from_memory(
    kind: type[PreTrainedModel], config: PretrainedConfig, weights: dict[str, torch.Tensor]
) -> PreTrainedModel:
    try:
        return kind.from_pretrained(None, config=config, state_dict=weights, dtype=torch.float32)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"model: a '{config.model_type}' model cannot be loaded again as it would be saved "
            f"({reason}); take another model"
        ) from None


def _saved_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters, tied ones once, and the buffers that a checkpoint has."""
    saved = model.state_dict()
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named if name in saved}


def _checksum(weight: torch.Tensor) -> int:
    """The sum of its bits as whole numbers; as 64-bit ones it takes 17 ms for 124M weights."""
    flat = weight.reshape(-1)
    wide = len(flat) % 2 == 0 and flat.storage_offset() % 2 == 0
    return int(flat.view(torch.int64 if wide else torch.int32).sum())


def unshare(model: torch.nn.Module, only_trained: bool = False) -> None:
    """Gives the weights of a model memory of their own, in place.

    Args:
        model: Any model; parameters that are tied to each other stay so.
        only_trained: Whether parameters that get no gradient are left alone.
    """
    for parameter in model.parameters():
        if parameter.requires_grad or not only_trained:
            parameter.data = parameter.data.clone()


def load_pretrained(
    section: ModelSection, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Reads a checkpoint with all its weights.

    Args:
        section: Names it.
        config: What the model is made from.
        tokenizer: The tokenizer, which has to belong to it.

    Raises:
        ModelError: It cannot be loaded, lacks weights, or does not belong to the tokenizer.
    """
    model = load_plain(section, config)
    check_fits(tokenizer, n_embeddings(model))
    _keep_separate_head(model)
    return model


def load_plain(section: ModelSection, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """A checkpoint as transformers reads it, in float32.

    Raises:
        ModelError: It cannot be loaded, or lacks weights.
    """
    place = str(section.name)
    options = loading_options(section, place) | ({"config": config} if config else {})
    try:
        model, info = AutoModelForSeq2SeqLM.from_pretrained(
            find_place("model", place), dtype=torch.float32, output_loading_info=True, **options
        )
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        raise not_loaded("model", place, error) from None
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"model: '{place}' lacks {len(missing)} weights of its own configuration "
            f"({', '.join(missing[:3])}{', ...' if missing[3:] else ''}), and random ones would "
            "stand in their place; take a complete checkpoint"
        )
    return model


def n_embeddings(model: PreTrainedModel) -> int:
    """The rows of a model's embeddings."""
    weights = cast(torch.Tensor, model.get_input_embeddings().weight)
    return len(weights)


def _keep_separate_head(model: PreTrainedModel) -> None:
    """An output layer that was loaded with weights of its own, as in mT5 and FLAN-T5, keeps them.

    Their class says that it is tied to the embeddings all the same, and transformers would put the
    embeddings in its place when they get another size.
    """
    if has_separate_head(model):
        keep_separate(model, f"{name_of(model, model.get_output_embeddings())}.weight")


def keep_separate(model: PreTrainedModel, weight: str) -> None:
    """Lets nothing tie a weight, given by its name, to another one again."""
    tied = model._tied_weights_keys or {}
    model._tied_weights_keys = {key: to for key, to in tied.items() if key != weight}
    model.all_tied_weights_keys.pop(weight, None)


def has_separate_head(model: PreTrainedModel) -> bool:
    """Whether the output layer has weights that no embeddings share."""
    head = model.get_output_embeddings().weight
    others = (m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding))
    return all(weight is not head for weight in others)


def grow(model: PreTrainedModel, rows: int) -> None:
    """Gives a model embeddings and outputs for `rows` tokens, the new ones drawn.

    Raises:
        ModelError: transformers cannot do it for all of its layers.
    """
    try:
        model.resize_token_embeddings(rows, mean_resizing=True)
        with torch.device("meta"):
            fresh = type(model)(type(model.config).from_dict(model.config.to_dict()))
        expected = {name: weight.shape for name, weight in fresh.named_parameters()}
        found = {name: weight.shape for name, weight in model.named_parameters()}
        done = all(found.get(name, shape) == shape for name, shape in expected.items())
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # NotImplementedError of EncoderDecoder, a class of its own of T5Gemma 2.
        done = False
    if not done:
        raise ModelError(
            f"data.special_tokens: transformers cannot add tokens to a '{model.config.model_type}' "
            "model, whose encoder and decoder have embeddings of their own; leave the tokens that "
            "its tokenizer lacks out of data.special_tokens"
        )


def name_of(model: torch.nn.Module, wanted: torch.nn.Module) -> str:
    """The name of a module in a model."""
    return next(name for name, module in model.named_modules() if module is wanted)
