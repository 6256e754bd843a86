"""Another number of layers for a model that has been loaded."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

from transformers import PretrainedConfig, PreTrainedModel

from hpo_summarize.models.weights import (
    Weights,
    from_memory,
    keep_separate_head,
    saved_tensors,
    unshare,
)


def with_depth(model: PreTrainedModel, **depth: int) -> PreTrainedModel:
    """The same model with another number of layers, the weights copied.

    Fewer layers are an evenly spaced choice that keeps the first and the last; more are the old
    ones repeated in order (layer `i` of `m` is a copy of old layer `floor(i * n / m)`).

    Args:
        model: Has `encoder_layers` and `decoder_layers` in its configuration. It stays as it is.
        **depth: Wanted numbers of `encoder_layers` and `decoder_layers`, at least 1.
    """
    config = copy.deepcopy(model.config)
    weights = spread_weights(saved_tensors(model), config, depth)
    new = from_memory(type(model), config, weights)
    new.generation_config = copy.deepcopy(model.generation_config)
    keep_separate_head(new)
    unshare(new)
    return new.train(model.training)


def spread_weights(weights: Weights, config: PretrainedConfig, depth: Mapping[str, int]) -> Weights:
    """Weights by their names in a model of another depth; repeated layers share them.

    Args:
        weights: By their names in a model with the depth of `config`.
        config: Gets the new depth.
        depth: `encoder_layers` and `decoder_layers`, or one of them.
    """
    for key, wanted in depth.items():
        chosen = spread_layers(getattr(config, key), wanted)
        setattr(config, key, wanted)
        layer = re.compile(rf"(.*\.{key.removesuffix('_layers')}\.layers\.)(\d+)(\..*)")
        spread: Weights = {}
        for name, tensor in weights.items():
            if match := layer.fullmatch(name):
                before, number, after = match.groups()
                copies = [new for new, old in enumerate(chosen) if old == int(number)]
                spread |= {f"{before}{new}{after}": tensor for new in copies}
            else:
                spread[name] = tensor
        weights = spread
    return weights


def spread_layers(have: int, wanted: int) -> list[int]:
    """Which of `have` layers are in a model of `wanted` layers.

    Example:
        >>> spread_layers(6, 3), spread_layers(2, 4)
        ([0, 2, 5], [0, 0, 1, 1])
    """
    if wanted >= have:
        return [index * have // wanted for index in range(wanted)]
    if wanted == 1:
        return [0]
    return [round(index * (have - 1) / (wanted - 1)) for index in range(wanted)]
