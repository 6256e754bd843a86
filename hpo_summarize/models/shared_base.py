"""The weights of a checkpoint: read from disk, and shared by the models of many trials."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import cast

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hpo_summarize.config.schema import ModelSection
from hpo_summarize.errors import ModelError
from hpo_summarize.models.config import find_place, load_config, loading_options, not_loaded
from hpo_summarize.models.depth import spread_weights
from hpo_summarize.models.families import require_family
from hpo_summarize.models.tokenizer import check_fits, n_rows, new_tokens

Weights = dict[str, torch.Tensor]


class PretrainedBase:
    """The weights of a recipe's checkpoint, read once for all trials that freeze them.

    Every model it builds is a module tree of its own, made from its own configuration, with its
    own dropout and depth; only the memory of the weights is shared. So nobody may write into them:
    what is trained, and whatever is to be merged, takes a copy first (`unshare`).

    Args:
        section: Names the checkpoint.
        tokenizer: The one that the models are used with.

    Attributes:
        weights: The shared weights by name.
        new_tokens: Ids of tokens that the checkpoint was not trained with.

    Raises:
        ModelError: The checkpoint cannot be loaded, or does not belong to the tokenizer.
    """

    def __init__(self, section: ModelSection, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config = load_config(section)
        model = load_pretrained(section, self.config(), tokenizer)
        self._class = type(model)
        self._generation_config = model.generation_config
        self._n_rows = max(n_rows(tokenizer), n_embeddings(model))
        self._grows = self._n_rows > n_embeddings(model)
        self._drawn: tuple[torch.Tensor, torch.Tensor, Weights] | None = None
        self.weights = _saved_tensors(model)
        self.new_tokens = new_tokens(section, tokenizer, n_embeddings(model))

    def config(self) -> PretrainedConfig:
        """The configuration of the checkpoint, a new object at every call."""
        return copy.deepcopy(self._config)

    def build(self, config: PretrainedConfig, depth: Mapping[str, int]) -> PreTrainedModel:
        """A model on the shared weights, as it would come from the disk, with a row for each token.

        Args:
            config: From `config`, with the dropout wanted; the depth is written into it.
            depth: Numbers of layers by their names in the configuration; see `with_depth`.
        """
        weights = self._with_new_rows() if self._grows else self.weights
        config.vocab_size = self._n_rows if self._grows else config.vocab_size
        model = _from_memory(self._class, config, spread_weights(weights, config, depth))
        # Where it came from is also what peft writes into the files of its adapters.
        model.name_or_path = model.config.name_or_path = self._config.name_or_path
        model.generation_config = copy.deepcopy(self._generation_config)
        _keep_separate_head(model)
        if self._grows:  # As after a resize, encoder and decoder then share one module.
            model.set_input_embeddings(model.get_input_embeddings())
        return model

    def _with_new_rows(self) -> Weights:
        """The weights with rows for new tokens, drawn as the random generator stands now.

        Every trial begins with the same seed, so they are drawn once: it takes 0.6 s for 30,000
        tokens, longer than all the rest of a model.
        """
        before = torch.get_rng_state()
        if self._drawn is None or not torch.equal(before, self._drawn[0]):
            model = _from_memory(self._class, self.config(), self.weights)
            _keep_separate_head(model)
            grow(model, self._n_rows)
            self._drawn = before, torch.get_rng_state(), _saved_tensors(model)
        torch.set_rng_state(self._drawn[1])
        return self._drawn[2]


def reloaded(model: PreTrainedModel) -> PreTrainedModel:
    """The model as it comes back from a checkpoint of it; its weights stay in the same memory.

    Raises:
        ModelError: transformers cannot load what it would write.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    return _from_memory(type(model), config, _saved_tensors(model))


def _from_memory(
    kind: type[PreTrainedModel], config: PretrainedConfig, weights: Weights
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


def _saved_tensors(model: PreTrainedModel) -> Weights:
    """Parameters, tied ones once, and the buffers that a checkpoint has."""
    saved = model.state_dict()
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach() for name, tensor in named if name in saved}


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
    place, config = str(section.name), config or load_config(section)
    try:
        model, info = require_family(config).auto_class.from_pretrained(
            find_place("model", place),
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            **loading_options(section, place),
        )
    except (torch.OutOfMemoryError, MemoryError, ModelError):
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
    return len(cast(torch.Tensor, model.get_input_embeddings().weight))


def is_as_configured(model: PreTrainedModel) -> bool:
    """Whether every weight has the name and the shape that the model's configuration asks for."""
    config = type(model.config).from_dict(model.config.to_dict())
    with torch.device("meta"):
        fresh = type(model)(config)
    expected = {name: weight.shape for name, weight in fresh.state_dict().items()}
    return expected == {name: weight.shape for name, weight in model.state_dict().items()}


def grow(model: PreTrainedModel, rows: int) -> None:
    """Gives a model embeddings and outputs for `rows` tokens, the new ones drawn.

    Raises:
        ModelError: transformers cannot do it for all of its layers.
    """
    try:
        model.resize_token_embeddings(rows, mean_resizing=True)
        is_done = is_as_configured(model)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # NotImplementedError of EncoderDecoder, a class of its own of T5Gemma 2.
        is_done = False
    if not is_done:
        raise ModelError(
            f"data.special_tokens: transformers cannot add tokens to a '{model.config.model_type}' "
            "model, whose encoder and decoder have embeddings of their own; leave the tokens that "
            "its tokenizer lacks out of data.special_tokens"
        )


# Output layers. mT5's and FLAN-T5's have weights of their own, although their class says that they
# are tied to the embeddings; transformers 5.23 would tie them again with every resize.


def has_separate_head(model: PreTrainedModel) -> bool:
    """Whether the output layer has weights that no embeddings share."""
    head = model.get_output_embeddings().weight
    others = (m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding))
    return all(weight is not head for weight in others)


def keep_separate(model: PreTrainedModel, weight: str) -> None:
    """Lets nothing tie a weight, given by its name, to another one again."""
    tied = model._tied_weights_keys or {}
    model._tied_weights_keys = {key: to for key, to in tied.items() if key != weight}
    model.all_tied_weights_keys.pop(weight, None)


def _keep_separate_head(model: PreTrainedModel) -> None:
    if has_separate_head(model):
        keep_separate(model, f"{name_of(model, model.get_output_embeddings())}.weight")


def name_of(model: torch.nn.Module, wanted: torch.nn.Module) -> str:
    """The name of a module in a model."""
    return next(name for name, module in model.named_modules() if module is wanted)
