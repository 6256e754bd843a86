"""Another number of layers for a model that has been loaded."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping

import torch
from torch.nn import Module, ModuleList
from transformers import PretrainedConfig, PreTrainedModel


def with_depth(
    model: PreTrainedModel, encoder_layers: int | None = None, decoder_layers: int | None = None
) -> PreTrainedModel:
    """The same model with another number of layers, the weights copied.

    Fewer layers are an evenly spaced choice that keeps the first and the last; more are the old
    ones repeated in order (layer `i` of `m` is a copy of old layer `floor(i * n / m)`).

    Args:
        model: A model with `encoder_layers` and `decoder_layers` in its configuration. It stays as
            it is.
        encoder_layers: Wanted number of encoder layers, at least 1; None leaves it.
        decoder_layers: Wanted number of decoder layers, at least 1; None leaves it.
    """
    new = copy.deepcopy(model)
    stacks = {"encoder": new.get_encoder(), "decoder": new.get_decoder()}
    for name, wanted in (("encoder", encoder_layers), ("decoder", decoder_layers)):
        if wanted is not None:
            layers = stacks[name].layers
            chosen = [layers[index] for index in spread_layers(len(layers), wanted)]
            stacks[name].layers = _numbered_copies(chosen, new.config)
            setattr(new.config, f"{name}_layers", wanted)
    return new


def _numbered_copies(layers: list[Module], config: PretrainedConfig) -> ModuleList:
    # All modules of a model have one and the same configuration.
    copies = [copy.deepcopy(layer, {id(config): config}) for layer in layers]
    for number, layer in enumerate(copies):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # The place of attention in the key-value cache.
                module.layer_idx = number  # type: ignore[assignment]
    return ModuleList(copies)


def spread_weights(
    weights: Mapping[str, torch.Tensor], config: PretrainedConfig, depth: Mapping[str, int]
) -> dict[str, torch.Tensor]:
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
        spread: dict[str, torch.Tensor] = {}
        for name, tensor in weights.items():
            if match := layer.fullmatch(name):
                before, number, after = match.groups()
                copies = [new for new, old in enumerate(chosen) if old == int(number)]
                spread |= {f"{before}{new}{after}": tensor for new in copies}
            else:
                spread[name] = tensor
        weights = spread
    return dict(weights)


def spread_layers(have: int, wanted: int) -> list[int]:
    """Which of `have` layers stand in a model of `wanted` layers.

    Example:
        >>> spread_layers(6, 3), spread_layers(2, 4)
        ([0, 2, 5], [0, 0, 1, 1])
    """
    if wanted >= have:
        return [index * have // wanted for index in range(wanted)]
    if wanted == 1:
        return [0]
    return [round(index * (have - 1) / (wanted - 1)) for index in range(wanted)]
