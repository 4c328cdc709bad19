"""What batch norm, ReLU and additions leave to do where no sparse convolution can take them in."""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels.backends.fused import Affine
from dsr_kernels.ops.fused import composed


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of x [N, C, H, W], in float32 (float64 for a float64 x)."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    return composed.moments(x, dtype)


def channel_affine(
    x: Tensor,  # [N, C, H, W]
    by: Affine,
    relu: bool = False,
    other: Tensor | None = None,  # [N, C, H, W]
    other_by: Affine | None = None,
) -> Tensor:
    """relu(affine(x) + affine(other)), in x's dtype: the end of a ResNet's block in one pass."""
    y = composed.affine(x, by)
    if other is not None:
        y = y + (other if other_by is None else composed.affine(other, other_by))
    return (torch.relu(y) if relu else y).to(x.dtype)
