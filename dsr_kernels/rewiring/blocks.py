"""Whole-kernel granularity: the k x k weights of one input and output channel as one."""

from __future__ import annotations

import math
from typing import Any

import torch

from dsr_kernels.rewiring.layers import SparseLayer


def use_kernels(layers: list[SparseLayer]) -> None:
    """Makes each layer's kernel its block. Raises ValueError for one that does not hold whole ones.

    A linear layer and a 1x1 convolution have kernels of a single weight.
    """
    sizes = [math.prod(layer.module.weight_shape[2:]) for layer in layers]
    for layer, size in zip(layers, sizes, strict=True):
        layer.block = size
        layer.check()


def prune_weights(plan: Any, layers: list[SparseLayer], count: int) -> float:
    """Prunes the smallest blocks of all layers that together hold at most `count` weights.

    Returns the largest magnitude pruned. Where blocks differ in size, those of equal magnitude
    stay or go as one.
    """
    sizes = {layer.block for layer in layers}
    if len(sizes) <= 1:
        plan.prune_smallest(count // max(sizes, default=1))
        return plan.cut
    scores = torch.cat([layer.magnitudes().double().abs() for layer in layers])
    weights = torch.cat([torch.full_like(layer.magnitudes(), layer.block) for layer in layers])
    scores, order = scores.sort(stable=True)
    within = int((weights[order].long().cumsum(0) <= count).sum())
    stays = scores[within].item() if within < scores.numel() else math.inf
    plan.prune_below(stays)
    if plan.cut < stays:  # there was less room
        return plan.cut
    below = scores[scores < stays]
    return below[-1].item() if below.numel() else 0.0
