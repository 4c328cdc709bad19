"""What every operation means, in plain torch: documentation and test oracle, never the fast path.

Each is one dense line on W = to_dense(values, crow_indices, col_indices, weight_shape); besides
to_dense / from_dense / densify this is the only place that builds a dense weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dsr_kernels.topology import rows_of


def to_dense(
    values: Tensor, crow_indices: Tensor, col_indices: Tensor, weight_shape: Sequence[int]
) -> Tensor:
    """The weight of `weight_shape` with `values` [blocks, block_size] or [nnz] at its non-zeros."""
    block_rows = crow_indices.numel() - 1
    dense = values.new_zeros(block_rows, weight_shape[0] // block_rows, math.prod(weight_shape[1:]))
    within = torch.arange(dense.shape[1], device=dense.device)
    places = rows_of(crow_indices)[:, None], within, col_indices.long()[:, None]
    return dense.index_put(places, values.reshape(-1, dense.shape[1])).view(tuple(weight_shape))


def at_pattern(dense: Tensor, crow_indices: Tensor, col_indices: Tensor) -> Tensor:
    """[blocks, block_size]: a dense weight at the pattern's positions, the inverse of to_dense."""
    block_rows = crow_indices.numel() - 1
    blocks = dense.reshape(block_rows, dense.shape[0] // block_rows, -1)
    return blocks[rows_of(crow_indices), :, col_indices.long()]


def sparse_conv2d(
    x: Tensor,  # [N, C, H, W]
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,
    col_indices: Tensor,
    weight_shape: Sequence[int],  # (O, C // groups, KH, KW)
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),  # top, bottom, left, right
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """y [N, O, P, Q] = conv2d(pad(x), W) + bias."""
    weight = to_dense(values, crow_indices, col_indices, weight_shape)
    return F.conv2d(_pad(x, padding), weight, bias, tuple(stride), 0, tuple(dilation), groups)


def sparse_conv2d_grad_input(
    grad: Tensor,  # [N, O, P, Q]
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    input_size: Sequence[int],  # (C, H, W)
    weight_shape: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """gx [N, C, H, W] = conv_transpose2d(gy, W), without the padding's share."""
    weight = to_dense(values, crow_indices, col_indices, weight_shape)
    x = grad.new_zeros(grad.shape[0], *input_size, requires_grad=True)
    with torch.enable_grad():
        y = F.conv2d(_pad(x, padding), weight, None, tuple(stride), 0, tuple(dilation), groups)
    return torch.autograd.grad(y, x, grad)[0]


def sparse_conv2d_grad_weight(
    x: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    crow_indices: Tensor,
    col_indices: Tensor,
    weight_shape: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """gvalues [nnz] = the dense weight gradient, read at the non-zeros."""
    weight = x.new_zeros(tuple(weight_shape), requires_grad=True)
    with torch.enable_grad():
        y = F.conv2d(_pad(x, padding), weight, None, tuple(stride), 0, tuple(dilation), groups)
    return at_pattern(torch.autograd.grad(y, weight, grad)[0], crow_indices, col_indices).flatten()


def sparse_conv2d_grad_bias(grad: Tensor) -> Tensor:
    """gbias [O] = the gradient of y [N, O, P, Q] summed over batch and image."""
    return grad.sum((0, 2, 3))


def sparse_linear(
    x: Tensor,  # [..., I]
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,
    col_indices: Tensor,
    weight_shape: Sequence[int],  # (O, I)
) -> Tensor:
    """y [..., O] = x W^T + bias."""
    return F.linear(x, to_dense(values, crow_indices, col_indices, weight_shape), bias)


def _pad(x: Tensor, padding: Sequence[int]) -> Tensor:
    top, bottom, left, right = padding
    return F.pad(x, (left, right, top, bottom))
