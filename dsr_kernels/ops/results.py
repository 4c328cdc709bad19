"""What the operations' results look like: all arguments checked, nothing computed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsr_kernels.backends.blocks import BLOCK_SIZES, block_size_of
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.held import exchange
from dsr_kernels.backends.native import DTYPE_CODES
from dsr_kernels.topology import INT32_MAX

LOW_PRECISION = (torch.bfloat16, torch.float16)

# --- argument checks ------------------------------------------------------------------------------


def check_tensors(
    name: str,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    rows: int,
) -> None:
    """Raises ValueError or TypeError, in the name of a layer, for tensors that do not match."""
    pattern = {"crow_indices": crow_indices, "col_indices": col_indices}
    _check_devices(name, input=x, values=values, bias=bias, **pattern)
    _check_activation(name, "input", x, values.dtype)
    size = block_size_of(crow_indices, rows) or 1
    blocks = col_indices.numel()
    # Number by number: dynamo takes a tuple with a symbol in it for another than one without.
    dims = values.dim()
    fits = dims == 1 or (dims == 2 and values.shape[1] == size)
    if col_indices.dim() != 1 or not fits or values.numel() != blocks * size:
        per_index = "one value" if size == 1 else f"{size} values"
        raise ValueError(
            f"{name}: expected {per_index} per column index, of shape ({blocks}, {size}) or "
            f"({blocks * size},), got values of shape {tuple(values.shape)} and col_indices of "
            f"shape {tuple(col_indices.shape)}"
        )
    if bias is not None and (bias.shape != (rows,) or bias.dtype != values.dtype):
        raise ValueError(
            f"{name}: expected bias of shape ({rows},) and dtype {values.dtype}, "
            f"got {tuple(bias.shape)} and {bias.dtype}"
        )
    _check_pattern(name, crow_indices, col_indices, rows)


def check_held_tensors(
    name: str,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    rows: int,
) -> None:
    """check_tensors, of tensors that another thread may be about to change."""
    if torch.compiler.is_compiling():
        check_tensors(name, x, values, bias, crow_indices, col_indices, rows)
        return
    with exchange:
        check_tensors(name, x, values, bias, crow_indices, col_indices, rows)


def _check_devices(name: str, **tensors: Tensor | None) -> None:
    devices = {what: t.device for what, t in tensors.items() if t is not None}
    if len(set(devices.values())) > 1:
        places = ", ".join(f"{what} on {device}" for what, device in devices.items())
        raise ValueError(f"{name}: expected all arguments on one device, got {places}")


def _check_activation(name: str, what: str, x: Tensor, dtype: torch.dtype) -> None:
    if dtype not in DTYPE_CODES:
        raise TypeError(
            f"{name}: values must be float32 or float64, got {dtype}; keep the weights in float32 "
            "(model.float()) and use torch.autocast, or pass bfloat16 / float16 activations"
        )
    if x.dtype != dtype and x.dtype not in LOW_PRECISION:
        raise TypeError(
            f"{name}: expected {what} of dtype {dtype} like the values (or bfloat16, float16), "
            f"got {x.dtype}"
        )


def _check_pattern(name: str, crow: Tensor, col: Tensor, rows: int) -> None:
    of_rows = crow.dim() == 1 and block_size_of(crow, rows)
    if crow.dtype != torch.int32 or col.dtype != torch.int32 or not of_rows:
        raise ValueError(
            f"{name}: expected int32 crow_indices of shape ({rows + 1},), or of blocks of "
            f"{BLOCK_SIZES[1:]} rows ({rows} // block_size + 1,), and int32 col_indices, "
            f"got {crow.dtype} of shape {tuple(crow.shape)} and {col.dtype}"
        )
    if not (crow.is_contiguous() and col.is_contiguous()):
        raise ValueError(f"{name}: expected contiguous crow_indices and col_indices")


def _check_shape(weight_shape: Sequence[int], groups: int) -> None:
    if len(weight_shape) != 4 or min(weight_shape) < 1:
        raise ValueError(
            "SparseConv2d: expected weight_shape (O, C // groups, KH, KW), all of at least 1, "
            f"got {tuple(weight_shape)}"
        )
    if math.prod(weight_shape[1:]) > INT32_MAX or weight_shape[0] > INT32_MAX:
        raise ValueError(
            "SparseConv2d: expected a weight of at most 2^31 - 1 rows of at most as many weights, "
            f"got weight_shape {tuple(weight_shape)}"
        )
    if groups < 1 or weight_shape[0] % groups:
        raise ValueError(
            f"SparseConv2d: expected groups to divide out_channels, got groups={groups} "
            f"and out_channels={weight_shape[0]}"
        )


def check_input(x: Tensor, weight_shape: Sequence[int], groups: int) -> None:
    """Raises ValueError for an input without the channels that the weight has."""
    _check_shape(weight_shape, groups)
    channels = weight_shape[1] * groups
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(
            f"SparseConv2d: expected input with {channels} channels, "
            f"got {x.shape[1] if x.dim() > 1 else 'none'} (shape {tuple(x.shape)})"
        )


def check_extents(name: str, **sizes: int) -> None:
    """Raises ValueError for a size that passes 2^31 - 1, with which planning could overflow.

    Sizes that torch.compile or torch.export leaves open are checked when the call is made.
    """
    for what, size in sizes.items():
        if not isinstance(size, torch.SymInt) and size > INT32_MAX:
            raise ValueError(
                f"{name}: expected {what.replace('_', ' ')} of at most 2^31 - 1, got {size}"
            )


def _output_size(size: Sequence[int], shape: ConvShape) -> tuple[int, int]:
    """(P, Q) of an input (H, W); refuses a kernel larger than the padded input, as torch does."""
    stride, padding, dilation = shape.stride, shape.padding, shape.dilation
    if min(*stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            "SparseConv2d: expected stride and dilation of at least 1 and padding of at least 0, "
            f"got stride={stride}, dilation={dilation}, padding={padding}"
        )
    height = size[0] + padding[0] + padding[1]
    width = size[1] + padding[2] + padding[3]
    extent_h = dilation[0] * (shape.weight_shape[2] - 1) + 1
    extent_w = dilation[1] * (shape.weight_shape[3] - 1) + 1
    check_extents(
        "SparseConv2d",
        stride=max(stride),
        dilation=max(dilation),
        extent_of_the_kernel=max(extent_h, extent_w),
        height_of_the_padded_input=height,
        width_of_the_padded_input=width,
    )
    if height < extent_h or width < extent_w or min(size) < 1:
        raise ValueError(
            f"SparseConv2d: expected a padded input of at least {extent_h} x {extent_w}, the "
            f"extent of the kernel, got {height} x {width} (input {size[0]} x {size[1]})"
        )
    return (height - extent_h) // stride[0] + 1, (width - extent_w) // stride[1] + 1


def channels_last(x: Tensor) -> bool:
    """Whether channels are x's innermost dimension, as torch judges an input of F.conv2d."""
    _, channel, row, column = x.stride()
    return channel == 1 and x.shape[1] <= column <= row and x.shape[2] * x.shape[3] > 1


def _check_grad(
    grad: Tensor,
    input_size: Sequence[int],  # (C, H, W)
    shape: ConvShape,
) -> None:
    out = _output_size(input_size[1:], shape)
    if grad.dim() != 4 or grad.shape[1:] != (shape.rows, *out):
        raise ValueError(
            f"SparseConv2d: expected gradient of shape (N, {shape.rows}, {out[0]}, {out[1]}), "
            f"got {tuple(grad.shape)}"
        )


# --- results: all arguments checked, nothing computed ---------------------------------------------


def conv2d_result(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    check_input(x, shape.weight_shape, shape.groups)
    check_tensors("SparseConv2d", x, values, bias, crow_indices, col_indices, shape.rows)
    out = _output_size(x.shape[2:], shape)
    return _empty(x, (x.shape[0], shape.rows, *out), channels_last(x))


def grad_input_result(
    grad: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    input_size: Sequence[int],
    shape: ConvShape,
    channels_last: bool,
) -> Tensor:
    _check_shape(shape.weight_shape, shape.groups)
    if len(input_size) != 3 or input_size[0] != shape.in_channels:
        raise ValueError(
            f"SparseConv2d: expected input_size ({shape.in_channels}, H, W), "
            f"got {tuple(input_size)}"
        )
    _check_grad(grad, input_size, shape)
    check_tensors("SparseConv2d", grad, values, None, crow_indices, col_indices, shape.rows)
    return _empty(grad, (grad.shape[0], *input_size), channels_last)


def grad_weight_result(
    x: Tensor,
    grad: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
    dtype: torch.dtype,
) -> Tensor:
    check_input(x, shape.weight_shape, shape.groups)
    _check_grad(grad, x.shape[1:], shape)
    if grad.shape[0] != x.shape[0]:
        raise ValueError(
            f"SparseConv2d: expected gradient of the input's batch size {x.shape[0]}, "
            f"got {grad.shape[0]}"
        )
    pattern = {"crow_indices": crow_indices, "col_indices": col_indices}
    _check_devices("SparseConv2d", input=x, gradient=grad, **pattern)
    _check_activation("SparseConv2d", "input", x, dtype)
    _check_activation("SparseConv2d", "gradient", grad, dtype)
    _check_pattern("SparseConv2d", crow_indices, col_indices, shape.rows)
    nnz = col_indices.numel() * block_size_of(crow_indices, shape.rows)
    return torch.empty(nnz, dtype=dtype, device=col_indices.device)


def grad_bias_result(grad: Tensor, dtype: torch.dtype) -> Tensor:
    _check_activation("SparseConv2d", "gradient", grad, dtype)
    return torch.empty(grad.shape[1], dtype=dtype, device=grad.device)


def _empty(x: Tensor, size: Sequence[int], channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)
