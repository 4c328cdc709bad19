"""What the results of fused operations look like: all arguments checked, nothing computed."""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.fused import Affine, Prologue, StatisticsGrad
from dsr_kernels.ops import results

# --- argument checks ------------------------------------------------------------------------------


def affine_of(center: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> Affine | None:
    """Raises ValueError unless the three are there together, or absent together."""
    if center is None or scale is None or shift is None:
        given = {"center": center, "scale": scale, "shift": shift}
        names = [name for name, tensor in given.items() if tensor is not None]
        if names:
            raise ValueError(
                "sparse_conv2d_fused: expected center, scale and shift together or none of them, "
                f"got {' and '.join(names)} alone"
            )
        return None
    return Affine(center, scale, shift)


def statistics_grad(
    y: Tensor | None, center: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> StatisticsGrad | None:
    """Raises ValueError unless all four are there together, or absent together."""
    by = affine_of(center, scale, shift)
    if (y is None) != (by is None):
        raise ValueError(
            "sparse_conv2d_fused: expected y together with y_center, y_scale and y_shift"
        )
    return None if y is None or by is None else StatisticsGrad(y, by)


def _check_channels(name: str, numbers: Tensor, channels: int, like: Tensor) -> None:
    if numbers.shape != (channels,) or numbers.dtype != like.dtype:
        raise ValueError(
            f"sparse_conv2d_fused: expected {name} of shape ({channels},) and dtype {like.dtype}, "
            f"got {tuple(numbers.shape)} and {numbers.dtype}"
        )
    if numbers.device != like.device:
        raise ValueError(
            f"sparse_conv2d_fused: expected {name} on {like.device}, got {numbers.device}"
        )


def _check_affine(prefix: str, by: Affine | None, channels: int, like: Tensor) -> None:
    if by is not None:
        for name, numbers in zip(Affine._fields, by, strict=True):
            _check_channels(prefix + name, numbers, channels, like)


def _check_like(name: str, tensor: Tensor | None, out: Tensor) -> None:
    if tensor is None:
        return
    if tensor.shape != out.shape or tensor.dtype != out.dtype or tensor.device != out.device:
        raise ValueError(
            f"sparse_conv2d_fused: expected {name} of shape {tuple(out.shape)} and {out.dtype} on "
            f"{out.device}, got {tuple(tensor.shape)} and {tensor.dtype} on {tensor.device}"
        )


def _check_statistics(by: StatisticsGrad | None, grad: Tensor, like: Tensor) -> None:
    if by is not None:
        _check_like("y", by.y, grad)
        _check_affine("y_", by.affine, grad.shape[1], like)


# --- results: all arguments checked, nothing computed ---------------------------------------------


def fused_result(
    x: Tensor,
    prologue: Prologue,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    residual: Tensor | None,
    statistics: bool,
    shape: ConvShape,
) -> tuple[Tensor, Tensor, Tensor]:
    out = results.conv2d_result(x, values, bias, crow_indices, col_indices, shape)
    _check_affine("", prologue.affine, x.shape[1], values)
    _check_like("residual", residual, out)
    if statistics and out.shape[0] * out.shape[2] * out.shape[3] == 0:
        raise ValueError(
            "sparse_conv2d_fused: expected at least one value per channel to take statistics of, "
            f"got an output of shape {tuple(out.shape)}"
        )
    mean = values.new_empty(shape.rows if statistics else 0)
    return out, mean, torch.empty_like(mean)


def fused_grad_input_result(
    grad: Tensor,
    by_statistics: StatisticsGrad | None,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    x: Tensor,
    prologue: Prologue,
    passed: Tensor | None,
    shape: ConvShape,
) -> tuple[Tensor, Tensor, Tensor]:
    results.check_input(x, shape.weight_shape, shape.groups)
    last = results.channels_last(x)
    out = results.grad_input_result(
        grad, values, crow_indices, col_indices, x.shape[1:], shape, last
    )
    _check_like("input", x, out)
    _check_like("passed", passed, out)
    _check_statistics(by_statistics, grad, values)
    _check_affine("", prologue.affine, x.shape[1], values)
    gscale = values.new_empty(0 if prologue.affine is None else x.shape[1])
    return out, gscale, torch.empty_like(gscale)


def fused_grad_weight_result(
    x: Tensor,
    prologue: Prologue,
    grad: Tensor,
    by_statistics: StatisticsGrad | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
    dtype: torch.dtype,
) -> Tensor:
    out = results.grad_weight_result(x, grad, crow_indices, col_indices, shape, dtype)
    _check_statistics(by_statistics, grad, out)
    _check_affine("", prologue.affine, x.shape[1], out)
    return out


def folded_result(
    x: Tensor,
    prologue: Prologue,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    out_scale: Tensor,
    out_shift: Tensor,
    residual: Tensor | None,
    out_relu: bool,
    shape: ConvShape,
) -> Tensor:
    out = results.conv2d_result(x, values, None, crow_indices, col_indices, shape)
    _check_affine("", prologue.affine, x.shape[1], values)
    _check_channels("out_scale", out_scale, shape.rows, values)
    _check_channels("out_shift", out_shift, shape.rows, values)
    _check_like("residual", residual, out)
    return out
