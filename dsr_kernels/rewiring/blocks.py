"""Whole kernels: the k x k weights of one input and output channel, pruned and grown together."""

from __future__ import annotations

import math

import torch

from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.plan import RewirePlan


def use_kernels(layers: list[SparseLayer]) -> None:
    """Makes each layer's kernel its entry; one position in linear layers and 1x1 convolutions.

    Raises ValueError for a layer that does not hold whole kernels.
    """
    sizes = [math.prod(layer.module.weight_shape[2:]) for layer in layers]
    for layer, size in zip(layers, sizes, strict=True):
        layer.kernel = size
        layer.check()


def prune_weights(plan: RewirePlan, layers: list[SparseLayer], count: int) -> float:
    """Prunes the smallest blocks of all layers, as many as together have at most `count` weights.

    Returns the largest magnitude pruned, 0 if none is. Where blocks differ in size, those of equal
    magnitude are pruned together or not at all.
    """
    sizes = {layer.block for layer in layers}
    if len(sizes) <= 1:
        plan.prune_smallest(count // max(sizes, default=1))
        return plan.threshold
    scores = torch.cat([layer.magnitudes().double().abs() for layer in layers])
    weights = torch.cat([torch.full_like(layer.magnitudes(), layer.block) for layer in layers])
    scores, order = scores.sort(stable=True)
    within = int((weights[order].long().cumsum(0) <= count).sum())
    smallest_kept = scores[within].item() if within < scores.numel() else math.inf
    plan.prune_below(smallest_kept)
    if plan.threshold < smallest_kept:  # capacity was a limit
        return plan.threshold
    below = scores[scores < smallest_kept]
    return below[-1].item() if below.numel() else 0.0
