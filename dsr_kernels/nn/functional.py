"""What modules call: the sparse twins of F.conv1d, F.conv2d and F.linear."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsr_kernels.backends.conv_shape import conv_shape
from dsr_kernels.backends.fused import Prologue
from dsr_kernels.ops import autograd, linear
from dsr_kernels.ops.fused import autograd as fused
from dsr_kernels.ops.fused.autograd import Fused
from dsr_kernels.ops.results import check_extents, check_held_tensors


def sparse_conv1d(
    x: Tensor,  # [N, C, L] or [C, L], any strides
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,  # [O // block_size + 1] int32
    col_indices: Tensor,  # [blocks] int32
    weight_shape: Sequence[int],  # (O, C // groups, K)
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0, 0),  # left, right
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """[N, O, Q] (or [O, Q]) = F.conv1d(x, W, bias, ...): a convolution of images of height 1.

    Autocast and errors as in sparse_conv2d.
    """
    check_sequence(x, weight_shape, groups)
    rows, inputs, kernel = weight_shape
    check_held_tensors("SparseConv1d", x, values, bias, crow_indices, col_indices, rows)
    length, extent = x.shape[-1] + sum(padding), dilation[0] * (kernel - 1) + 1
    check_extents(
        "SparseConv1d",
        stride=stride[0],
        dilation=dilation[0],
        padding=sum(padding),
        extent_of_the_kernel=extent,
    )
    if x.shape[-1] < 1 or length < extent:
        raise ValueError(
            f"SparseConv1d: expected a padded input of at least {extent}, the extent of the "
            f"kernel, got {length} (input {x.shape[-1]})"
        )
    y = sparse_conv2d(
        x.unsqueeze(-2),
        values,
        bias,
        crow_indices,
        col_indices,
        (rows, inputs, 1, kernel),
        (1, *stride),
        (0, 0, *padding),
        (1, *dilation),
        groups,
    )
    return y.squeeze(-2)


def check_sequence(x: Tensor, weight_shape: Sequence[int], groups: int) -> None:
    """Raises ValueError unless x is an input of a 1-D convolution with that weight."""
    if len(weight_shape) != 3 or min(weight_shape) < 1:
        raise ValueError(
            "SparseConv1d: expected weight_shape (O, C // groups, K), all of at least 1, "
            f"got {tuple(weight_shape)}"
        )
    channels = weight_shape[1] * groups
    if x.dim() not in (2, 3) or x.shape[-2] != channels:
        raise ValueError(
            f"SparseConv1d: expected input of shape (N, {channels}, L) or ({channels}, L), "
            f"got {tuple(x.shape)}"
        )


def sparse_conv2d(
    x: Tensor,  # [N, C, H, W] or [C, H, W], any strides
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,  # [O // block_size + 1] int32
    col_indices: Tensor,  # [blocks] int32
    weight_shape: Sequence[int],  # (O, C // groups, KH, KW)
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),  # top, bottom, left, right
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """[N, O, P, Q] (or [O, P, Q]) = F.conv2d(x, W, bias, ...), in x's memory format.

    Under torch.autocast x is cast to the autocast dtype, as for F.conv2d. Raises ValueError
    (shapes), TypeError (dtypes) or NotImplementedError (device) naming the argument.
    """
    if x.dim() not in (3, 4):
        raise ValueError(
            "SparseConv2d: expected a 3-D (unbatched) or 4-D (batched) input, "
            f"got shape {tuple(x.shape)}"
        )
    batched = x.dim() == 4
    image = _autocast(x if batched else x.unsqueeze(0))
    shape = conv_shape(weight_shape, stride, padding, dilation, groups)
    y = autograd.sparse_conv2d(image, values, bias, crow_indices, col_indices, shape)
    return y if batched else y.squeeze(0)


def sparse_conv2d_fused(
    x: Tensor,  # [N, C, H, W], any strides
    prologue: Prologue,
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,  # [O // block_size + 1] int32
    col_indices: Tensor,  # [blocks] int32
    weight_shape: Sequence[int],  # (O, C // groups, KH, KW)
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),  # top, bottom, left, right
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    residual: Tensor | None = None,  # [N, O, P, Q]
    statistics: bool = False,
) -> Fused:
    """y = F.conv2d(z, W, bias, ...) + residual, where z = relu((x - center) * scale + shift).

    `prologue` holds center, scale and shift ([C], of the values' dtype; or None) and whether there
    is a ReLU. With `statistics`, the result has y's mean and biased variance [O], too, as autograd
    sees them. z is never stored. Padding is of z, so it is zero. Autocast is as in sparse_conv2d.
    Raises ValueError (shapes), TypeError (dtypes) or NotImplementedError (device).
    """
    if x.dim() != 4:
        raise ValueError(f"SparseConv2d: expected a 4-D input, got shape {tuple(x.shape)}")
    x, residual = _autocast(x), None if residual is None else _autocast(residual)
    shape = conv_shape(weight_shape, stride, padding, dilation, groups)
    weight = values, bias, crow_indices, col_indices
    return fused.sparse_conv2d_fused(x, prologue, *weight, residual, statistics, shape)


def sparse_conv2d_folded(
    x: Tensor,  # [N, C, H, W], any strides
    prologue: Prologue,
    values: Tensor,  # [blocks, block_size] or [nnz]
    crow_indices: Tensor,  # [O // block_size + 1] int32
    col_indices: Tensor,  # [blocks] int32
    weight_shape: Sequence[int],  # (O, C // groups, KH, KW)
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0, 0, 0),  # top, bottom, left, right
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
    *,
    scale: Tensor,  # [O]
    shift: Tensor,  # [O]
    residual: Tensor | None = None,  # [N, O, P, Q]
    relu: bool = False,
) -> Tensor:
    """relu(F.conv2d(z, W, ...) * scale + shift + residual): inference, with batch norm folded in.

    As sparse_conv2d_fused otherwise. Raises RuntimeError where autograd is to record it.
    """
    if x.dim() != 4:
        raise ValueError(f"SparseConv2d: expected a 4-D input, got shape {tuple(x.shape)}")
    x, residual = _autocast(x), None if residual is None else _autocast(residual)
    shape = conv_shape(weight_shape, stride, padding, dilation, groups)
    weight, out = (values, crow_indices, col_indices), (scale, shift)
    return fused.sparse_conv2d_folded(x, prologue, *weight, *out, residual, relu, shape)


def sparse_linear(
    x: Tensor,  # [..., I]
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,
    col_indices: Tensor,
    weight_shape: Sequence[int],  # (O, I)
) -> Tensor:
    """[..., O] = F.linear(x, W, bias): a 1x1 convolution of a 1x1 image."""
    if len(weight_shape) != 2 or min(weight_shape) < 1:
        raise ValueError(
            "SparseLinear: expected weight_shape (O, I), both of at least 1, "
            f"got {tuple(weight_shape)}"
        )
    rows, features = weight_shape
    if x.dim() < 1 or x.shape[-1] != features:
        raise ValueError(
            f"SparseLinear: expected input with {features} features, "
            f"got {x.shape[-1] if x.dim() else 'a scalar'} (shape {tuple(x.shape)})"
        )
    return linear.sparse_linear(_autocast(x), values, bias, crow_indices, col_indices, rows)


def _autocast(x: Tensor) -> Tensor:
    """x as torch.autocast would hand it to F.conv2d: float64 and integers stay what they are."""
    device = x.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return x
    if x.dtype == torch.float64 or not x.is_floating_point():
        return x
    return x.to(torch.get_autocast_dtype(device))
