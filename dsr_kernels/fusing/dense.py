"""Dense convolutions through the fused operation: their weight is a pattern without gaps."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from dsr_kernels.backends.fused import Prologue
from dsr_kernels.nn import functional
from dsr_kernels.ops.fused.autograd import Fused

MOST_WEIGHTS = 16384


def through_fused(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether a dense convolution is better off in the fused operation.

    That is so of small ones whose passes over activations weigh more than their arithmetic: a stem
    and the 1x1 of a shortcut. A compiler fuses what is around a dense one by itself.
    """
    if torch.compiler.is_compiling() or layer.groups != 1 or layer.padding_mode != "zeros":
        return False
    if isinstance(layer.padding, str) or "weight" not in layer._parameters:
        return False
    small = layer.kernel_size == (1, 1) or layer.in_channels <= 3
    return small and layer.weight.numel() <= MOST_WEIGHTS


def fused(
    layer: nn.Conv2d, x: Tensor, prologue: Prologue, residual: Tensor | None, statistics: bool
) -> Fused:
    """As SparseConv2d.fused."""
    weight = layer.weight
    rows = weight.shape[0]
    crow, col = _pattern(rows, weight.numel() // rows, weight.device)
    values = weight.reshape(-1, 1)
    shape = tuple(weight.shape), layer.stride, sides(layer), layer.dilation, layer.groups
    return functional.sparse_conv2d_fused(
        *(x, prologue, values, layer.bias, crow, col, *shape),
        residual=residual,
        statistics=statistics,
    )


def sides(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    """(top, bottom, left, right)."""
    assert not isinstance(layer.padding, str)
    height, width = layer.padding
    return height, height, width, width


@functools.cache
def _pattern(rows: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """All positions of a weight of so many rows. Kept: its plans are found by these tensors."""
    with torch.inference_mode(False):
        crow = torch.arange(rows + 1, dtype=torch.int32, device=device) * length
        col = torch.arange(length, dtype=torch.int32, device=device).repeat(rows)
    return crow, col
