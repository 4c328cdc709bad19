"""torch's normalisations of a weight: on `weight_values` they would normalise a list."""

from __future__ import annotations

from typing import Any

import torch.nn.utils.parametrizations as by_class
from torch import nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

# What each leaves on the layer -> its name, and how it is taken off again.
OFF = "parametrize.remove_parametrizations(layer, 'weight_values')"
NORMALISATIONS: dict[type, tuple[str, str]] = {
    WeightNorm: ("weight_norm", "nn.utils.remove_weight_norm(layer, 'weight_values')"),
    SpectralNorm: ("spectral_norm", "nn.utils.remove_spectral_norm(layer, 'weight_values')"),
    by_class._WeightNorm: ("parametrizations.weight_norm", OFF),
    by_class._SpectralNorm: ("parametrizations.spectral_norm", OFF),
    by_class._Orthogonal: ("parametrizations.orthogonal", OFF),
}


def refuse_normalized(layer: nn.Module) -> None:
    """Raises TypeError where torch normalises the weight_values of a sparse layer.

    They are the list of its blocks, [blocks, block_size], and not its weight: the norm of a row or
    of the whole weight is not what torch would take. Other parametrizations see the list that they
    asked for.
    """
    found: list[Any] = [
        hook
        for hook in layer._forward_pre_hooks.values()
        if getattr(hook, "name", None) == "weight_values"
    ]
    if nn.utils.parametrize.is_parametrized(layer, "weight_values"):
        found += layer.parametrizations["weight_values"]  # type: ignore[index]
    for each in found:
        if type(each) in NORMALISATIONS:
            name, off = NORMALISATIONS[type(each)]
            label = getattr(layer, "label", lambda: type(layer).__name__)()
            raise TypeError(
                f"{label}: nn.utils.{name} on weight_values normalises the list of the non-zeros, "
                f"not the weight; take it off with {off}, and normalise what goes in or comes out, "
                "or keep this layer dense (sparsify's exclude)"
            )
