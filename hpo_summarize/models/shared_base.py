"""A checkpoint: read from disk once, and shared by the models of many trials."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hpo_summarize.config.schema import ModelSection, Recipe
from hpo_summarize.errors import ModelError
from hpo_summarize.models.config import find_place, load_config, loading_options, not_loaded
from hpo_summarize.models.depth import spread_weights
from hpo_summarize.models.families import require_family
from hpo_summarize.models.tokenizer import check_fits, n_rows, new_tokens
from hpo_summarize.models.weights import (
    Weights,
    from_memory,
    grow,
    keep_separate_head,
    n_embeddings,
    saved_tensors,
)


class PretrainedBase:
    """The weights of a recipe's checkpoint, for all trials that freeze them.

    Every model it builds is a module tree of its own, made from its own configuration, with its
    own dropout and depth; only the memory of the weights is shared. So nothing may write into them:
    what is trained, and whatever is to be merged, takes a copy first (`unshare`).

    Args:
        recipe: Names the checkpoint.
        tokenizer: The one that the models are used with.

    Attributes:
        weights: The shared weights by name.
        new_tokens: Ids of tokens that the checkpoint was not trained with; empty without LoRA.

    Raises:
        ModelError: The checkpoint cannot be loaded, lacks weights, or does not belong to the
            tokenizer.
    """

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
        self._config = load_config(recipe.model)
        model = load_plain(recipe.model, self.config())
        check_fits(tokenizer, n_embeddings(model))
        self._class = type(model)
        self._generation_config = model.generation_config
        n_saved = n_embeddings(model)
        self._n_rows = max(n_rows(tokenizer), n_saved)
        self._grows = self._n_rows > n_saved
        self._drawn: tuple[torch.Tensor, torch.Tensor, Weights] | None = None
        self.weights = saved_tensors(model)
        self.new_tokens = new_tokens(recipe.model, tokenizer, n_saved) if recipe.lora else []

    def config(self) -> PretrainedConfig:
        """The configuration of the checkpoint, a new object at every call."""
        return copy.deepcopy(self._config)

    def build(self, config: PretrainedConfig, depth: Mapping[str, int]) -> PreTrainedModel:
        """A model on the shared weights, with a row for each token.

        Args:
            config: From `config`, with the dropout wanted; the depth is written into it.
            depth: Numbers of layers by their names in the configuration; see `with_depth`.
                Repeated layers share memory.
        """
        weights = self._with_new_rows() if self._grows else self.weights
        config.vocab_size = self._n_rows if self._grows else config.vocab_size
        model = from_memory(self._class, config, spread_weights(weights, config, depth))
        # Where it came from is also what peft writes into the files of its adapters.
        model.name_or_path = model.config.name_or_path = self._config.name_or_path
        model.generation_config = copy.deepcopy(self._generation_config)
        keep_separate_head(model)
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
            model = from_memory(self._class, self.config(), self.weights)
            keep_separate_head(model)
            grow(model, self._n_rows)
            self._drawn = before, torch.get_rng_state(), saved_tensors(model)
        torch.set_rng_state(self._drawn[1])
        return self._drawn[2]


def load_plain(section: ModelSection, config: PretrainedConfig | None = None) -> PreTrainedModel:
    """A checkpoint as transformers reads it, in float32.

    Args:
        section: Names it.
        config: What the model is made from; None: the checkpoint's own configuration.

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
            "take their place; take a complete checkpoint"
        )
    return model
