"""The fused operations, made of the plain ones and of torch's: differentiable any number of times.

Backends without kernels of their own compute these, and so do derivatives of second order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.fused import Affine, Epilogue, InputGrad, Prologue, StatisticsGrad
from dsr_kernels.ops import autograd, results


def per_channel(numbers: Tensor) -> Tensor:
    """[C] as [1, C, 1, 1]."""
    return numbers[:, None, None]


def affine(x: Tensor, by: Affine) -> Tensor:
    """(x - center) * scale + shift, in the dtype of the numbers."""
    center, scale, shift = map(per_channel, by)
    return (x.to(by.center.dtype) - center) * scale + shift


def activated(x: Tensor, prologue: Prologue) -> Tensor:
    """z, in x's dtype."""
    z = x if prologue.affine is None else affine(x, prologue.affine).to(x.dtype)
    return torch.relu(z) if prologue.relu else z


def moments(y: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance [O] over batch and image. A variance of nothing is NaN."""
    variance, mean = torch.var_mean(y.to(dtype), (0, 2, 3), correction=0)
    return mean, variance


def moments_grad(y: Tensor, mean: Tensor, gmean: Tensor | None, gvariance: Tensor | None) -> Affine:
    """What the gradients of mean and variance add to y's: an affine map of y."""
    count = y.numel() // y.shape[1]
    zero = torch.zeros_like(mean)
    slope = zero if gvariance is None else gvariance * (2 / count)
    return Affine(mean, slope, zero if gmean is None else gmean / count)


def whole_grad(grad: Tensor, by_statistics: StatisticsGrad | None) -> Tensor:
    """g: the gradient of y, by way of its statistics too, in the dtype of `grad`."""
    if by_statistics is None:
        return grad
    return (grad + affine(by_statistics.y, by_statistics.affine)).to(grad.dtype)


def sum_over_images(x: Tensor) -> Tensor:
    """[C] of [N, C, H, W]."""
    return x.sum((0, 2, 3))


# --- as backends.dispatch.FusedBackend ------------------------------------------------------------


def takes(activation: Tensor, values_dtype: torch.dtype) -> bool:
    return True


def sparse_conv2d_fused(
    out: Tensor,
    x: Tensor,
    prologue: Prologue,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    epilogue: Epilogue,
    shape: ConvShape,
) -> Tensor:
    z = activated(x, prologue)
    scale, residual, relu, statistics = epilogue
    if scale is None:
        y = autograd.sparse_conv2d(z, values, bias, crow_indices, col_indices, shape)
    else:  # low precision is rounded once, after everything
        z = z.to(values.dtype)
        y = autograd.sparse_conv2d(z, values, None, crow_indices, col_indices, shape)
        y = y * per_channel(scale)
        y = y if bias is None else y + per_channel(bias)
    y = y if residual is None else y + residual
    out.copy_(torch.relu(y) if relu else y)
    if statistics is not None:
        for to, computed in zip(statistics, moments(out, values.dtype), strict=True):
            to.copy_(computed)
    return out


def sparse_conv2d_fused_grad_input(
    out: Tensor,
    grad: Tensor,
    by_statistics: StatisticsGrad | None,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    store: InputGrad,
    shape: ConvShape,
) -> Tensor:
    grads = _input_grads(
        store.x,
        store.prologue,
        values,
        (crow_indices, col_indices),
        whole_grad(grad, by_statistics),
        store.passed,
        shape,
    )
    if store.sums is not None:
        for to, computed in zip(store.sums, grads[1:], strict=True):
            to.copy_(computed)
    return out.copy_(grads[0])


def sparse_conv2d_fused_grad_weight(
    out: Tensor,
    x: Tensor,
    prologue: Prologue,
    grad: Tensor,
    by_statistics: StatisticsGrad | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    z, g = activated(x, prologue), whole_grad(grad, by_statistics)
    found = autograd.sparse_conv2d_grad_weight(z, g, crow_indices, col_indices, shape, out.dtype)
    return out.copy_(found)


# --- the derivative, differentiable itself --------------------------------------------------------


class Wants(NamedTuple):
    """Which gradients are asked for; `affine` is center, scale and shift."""

    x: bool
    affine: bool
    values: bool
    bias: bool
    residual: bool


class Grads(NamedTuple):
    x: Tensor | None
    affine: Affine | None
    values: Tensor | None
    bias: Tensor | None
    residual: Tensor | None


def backward(
    wants: Wants,
    x: Tensor,
    prologue: Prologue,
    values: Tensor,
    pattern: tuple[Tensor, Tensor],
    gy: Tensor,
    by_statistics: StatisticsGrad | None,
    passed: Tensor | None,
    shape: ConvShape,
) -> Grads:
    """The gradients that are wanted, of operations that autograd can record."""
    g = whole_grad(gy, by_statistics)
    gx, gaffine, gvalues = passed, None, None
    if wants.x or wants.affine:
        gx, gscale, gshift = _input_grads(x, prologue, values, pattern, g, passed, shape)
        if prologue.affine is not None:
            gaffine = Affine(-prologue.affine.scale * gshift, gscale, gshift)
    if wants.values:
        z = activated(x, prologue)
        gvalues = autograd.sparse_conv2d_grad_weight(z, g, *pattern, shape, values.dtype)
        gvalues = gvalues.view(values.shape)
    gbias = autograd.sparse_conv2d_grad_bias(g, values.dtype) if wants.bias else None
    return Grads(gx, gaffine, gvalues, gbias, g if wants.residual else None)


def _input_grads(
    x: Tensor,
    prologue: Prologue,
    values: Tensor,
    pattern: tuple[Tensor, Tensor],
    g: Tensor,
    passed: Tensor | None,
    shape: ConvShape,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gx, gscale, gshift), the last two empty without an affine map."""
    last = results.channels_last(x)
    gz = autograd.sparse_conv2d_grad_input(g, values, *pattern, x.shape[1:], shape, last)
    if prologue.relu:
        gz = torch.where(activated(x, prologue) <= 0, torch.zeros_like(gz), gz)
    gscale = gshift = values.new_empty(0)
    gx = gz
    if prologue.affine is not None:
        center, scale, _ = prologue.affine
        gx = gz.to(scale.dtype) * per_channel(scale)
        gscale = sum_over_images(gz * (x.to(scale.dtype) - per_channel(center)))
        gshift = sum_over_images(gz.to(scale.dtype))
    gx = gx if passed is None else gx + passed
    return gx.to(x.dtype), gscale, gshift
