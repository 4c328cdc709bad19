"""Thin dense networks, a baseline of the paper: narrower, with a sparse one's parameter count."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from dsr_kernels.distribution import layer_nnz
from dsr_kernels.models.layers import weight_tensors

STEPS = 1000  # widths are multiples of 1 / STEPS


def learnable(model: nn.Module) -> int:
    """Learnable parameters of a model. A sparse layer counts its non-zeros and its bias."""
    return sum(parameter.numel() for parameter in model.parameters())


def learnable_if_sparse(twin: nn.Module, sparsity: float, distribution: str = "uniform") -> int:
    """Learnable parameters of the sparse network whose dense twin is `twin`.

    `sparsity` and `distribution` are that network's (see `layer_nnz`). The twin may be on the meta
    device.
    """
    layers = [m for _, m, _ in weight_tensors(twin) if getattr(m, "sparsifiable", False)]
    positions = sum(module.weight.numel() for module in layers)
    nonzeros = layer_nnz([module.weight.shape for module in layers], sparsity, distribution)
    return learnable(twin) - positions + sum(nonzeros)


def thin_width(
    build: Callable[[float], nn.Module],
    usual: float,
    sparsity: float,
    distribution: str = "uniform",
) -> float:
    """The width at which a dense network is about as large as the sparse one of the usual width.

    It is the largest multiple of 0.001 up to `usual` that does not give the dense network more
    learnable parameters. `build` gives the dense twin of a width, on the meta device for speed.
    Raises ValueError where even the narrowest network has more parameters.
    """
    allowed = learnable_if_sparse(build(usual), sparsity, distribution)
    fits, above = 0, round(usual * STEPS) + 1  # in steps; the count never falls as the width grows
    while above - fits > 1:
        middle = (fits + above) // 2
        if learnable(build(middle / STEPS)) <= allowed:
            fits = middle
        else:
            above = middle
    if not fits:
        raise ValueError(
            f"sparsity: the sparse network has {allowed:,} parameters at {sparsity}, and the "
            f"narrowest dense one {learnable(build(1 / STEPS)):,}; expected a lower sparsity"
        )
    return fits / STEPS
