"""The fused operations with their derivatives.

Backward recomputes z from x, and what y's statistics add to its gradient from y, while packing. So
a graph keeps the raw input and the output, which is the raw input of whatever comes next. A
derivative of second order goes through `composed`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.fused import Affine, Prologue, StatisticsGrad, flat
from dsr_kernels.ops import watch
from dsr_kernels.ops.autograd import are_plain, is_recorded, sparse_conv2d_grad_bias
from dsr_kernels.ops.fused import composed, elementwise, library
from dsr_kernels.ops.fused.composed import Grads, Wants
from dsr_kernels.ops.fused.results import affine_of
from dsr_kernels.ops.saved import (
    Context,
    Gradients,
    keep_weight,
    recorded_with,
    saved,
    version_of,
)

OPS = torch.ops.dsr_kernels


class Fused(NamedTuple):
    y: Tensor  # [N, O, P, Q]
    mean: Tensor | None  # [O], of y over batch and image; None where not asked for
    variance: Tensor | None  # [O], biased
    x: Tensor  # the input, for whatever else it goes to: see sparse_conv2d_fused


def sparse_conv2d_fused(
    x: Tensor,  # [N, C, H, W]
    prologue: Prologue,
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,  # [O // block_size + 1] int32
    col_indices: Tensor,  # [blocks] int32
    residual: Tensor | None,  # [N, O, P, Q]
    statistics: bool,
    shape: ConvShape,
) -> Fused:
    """y = conv2d(pad(z), W) + bias + residual, where z = relu((x - center) * scale + shift).

    The `x` of the result is the input once more. Whoever uses that one instead (for a shortcut)
    has its gradient added while this op's is stored, and not in a pass of its own.
    """
    tensors = (x, *flat(prologue.affine), values, bias, crow_indices, col_indices, residual)
    args = (x, *flat(prologue.affine), prologue.relu, values, bias, crow_indices, col_indices)
    if not are_plain(tensors):
        y, mean, variance = OPS.sparse_conv2d_fused.default(*args, residual, statistics, *shape)
        passed = x
    elif is_recorded((x, *flat(prologue.affine), values, bias, residual)):
        kernel, version = library.sparse_conv2d_fused, version_of(values)
        y, mean, variance, passed = SparseConvFused.apply(
            kernel, *args, residual, statistics, shape
        )
        recorded_with(y, version)
    else:
        weight = values, bias, crow_indices, col_indices
        y, mean, variance = library.sparse_conv2d_fused(
            x, prologue, *weight, residual, statistics, shape
        )
        passed = x
    return Fused(y, mean, variance, passed) if statistics else Fused(y, None, None, passed)


def sparse_conv2d_fused_grad_input(
    grad: Tensor,  # [N, O, P, Q]
    by_statistics: StatisticsGrad | None,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    x: Tensor,  # [N, C, H, W]
    prologue: Prologue,
    passed: Tensor | None,  # [N, C, H, W]
    shape: ConvShape,
) -> tuple[Tensor, Tensor, Tensor]:
    """(gx, gscale, gshift); the last two are empty without an affine map. It has no derivative."""
    y, by = (None, None) if by_statistics is None else by_statistics
    tensors = (grad, y, *flat(by), values, crow_indices, col_indices, x, passed)
    if are_plain(tensors):
        return library.sparse_conv2d_fused_grad_input(
            grad, by_statistics, values, crow_indices, col_indices, x, prologue, passed, shape
        )
    weight, numbers = (values, crow_indices, col_indices), flat(prologue.affine)
    return OPS.sparse_conv2d_fused_grad_input.default(
        grad, y, *flat(by), *weight, x, *numbers, prologue.relu, passed, *shape
    )


def sparse_conv2d_fused_grad_weight(
    x: Tensor,  # [N, C, H, W]
    prologue: Prologue,
    grad: Tensor,  # [N, O, P, Q]
    by_statistics: StatisticsGrad | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
    dtype: torch.dtype,  # of the result: the values'
) -> Tensor:
    """gvalues [nnz]. It has no derivative."""
    y, by = (None, None) if by_statistics is None else by_statistics
    if are_plain((x, *flat(prologue.affine), grad, y, *flat(by), crow_indices, col_indices)):
        return library.sparse_conv2d_fused_grad_weight(
            x, prologue, grad, by_statistics, crow_indices, col_indices, shape, dtype
        )
    numbers, pattern = flat(prologue.affine), (crow_indices, col_indices)
    return OPS.sparse_conv2d_fused_grad_weight.default(
        x, *numbers, prologue.relu, grad, y, *flat(by), *pattern, *shape, dtype
    )


def sparse_conv2d_folded(
    x: Tensor,  # [N, C, H, W]
    prologue: Prologue,
    values: Tensor,  # [blocks, block_size] or [nnz]
    crow_indices: Tensor,
    col_indices: Tensor,
    out_scale: Tensor,  # [O]
    out_shift: Tensor,  # [O]
    residual: Tensor | None,  # [N, O, P, Q]
    out_relu: bool,
    shape: ConvShape,
) -> Tensor:
    """relu(conv2d(pad(z), W) * out_scale + out_shift + residual), for inference.

    Raises RuntimeError where autograd is to record it.
    """
    numbers, weight = flat(prologue.affine), (values, crow_indices, col_indices)
    tensors = (x, *numbers, *weight, out_scale, out_shift, residual)
    if is_recorded(tensors):
        raise RuntimeError(
            "sparse_conv2d_folded: has no derivative; run under torch.no_grad(), or use "
            "sparse_conv2d_fused"
        )
    if are_plain(tensors):
        return library.sparse_conv2d_folded(
            x, prologue, *weight, out_scale, out_shift, residual, out_relu, shape
        )
    return OPS.sparse_conv2d_folded.default(
        x, *numbers, prologue.relu, *weight, out_scale, out_shift, residual, out_relu, *shape
    )


class FusedContext(Context):
    relu: bool
    statistics: bool


class SparseConvFused(torch.autograd.Function):
    """`kernel` is the op that computes: library's, or the dispatcher's below autograd."""

    @staticmethod
    def forward(
        ctx: FusedContext,
        kernel: Callable[..., tuple[Tensor, Tensor, Tensor]],
        x: Tensor,
        center: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        relu: bool,
        values: Tensor,
        bias: Tensor | None,
        crow_indices: Tensor,
        col_indices: Tensor,
        residual: Tensor | None,
        statistics: bool,
        shape: ConvShape,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        prologue = Prologue(affine_of(center, scale, shift), relu)
        plain = kernel is library.sparse_conv2d_fused
        held, *pattern = keep_weight(ctx, plain, values, crow_indices, col_indices)
        y, mean, variance = kernel(x, prologue, held, bias, *pattern, residual, statistics, shape)
        kept = (y, mean) if statistics else (None, None)
        ctx.save_for_backward(x, center, scale, shift, values, *kept)  # type: ignore[arg-type]
        ctx.relu, ctx.statistics, ctx.shape, ctx.grad_size = relu, statistics, shape, y.shape
        ctx.set_materialize_grads(False)
        if not statistics:
            ctx.mark_non_differentiable(mean, variance)
        if watch.watchers and are_plain((values,)):
            for watcher in watch.living():
                watcher.used(values)
        return y, mean, variance, x.view_as(x)

    @staticmethod
    def backward(
        ctx: FusedContext,
        gy: Tensor | None,
        gmean: Tensor | None,
        gvariance: Tensor | None,
        passed: Tensor | None,
    ) -> Gradients:
        if gy is gmean is gvariance is None:  # the output is nowhere used, the input may be
            return None, passed, *(None,) * 11
        (x, center, scale, shift, values, y, mean), pattern = saved(ctx, 4)
        _, wants_x, *wants_affine, _, wants_values, wants_bias, _, _, wants_residual, _, _ = (
            ctx.needs_input_grad
        )
        if gy is None:
            gy = x.new_zeros(ctx.grad_size)
        by_statistics = None
        if ctx.statistics and not gmean is gvariance is None:
            by_statistics = StatisticsGrad(y, composed.moments_grad(y, mean, gmean, gvariance))
        operands = x, Prologue(affine_of(center, scale, shift), ctx.relu), values
        wants = Wants(wants_x, any(wants_affine), wants_values, wants_bias, wants_residual)
        backward = composed.backward if torch.is_grad_enabled() else _backward
        gx, gaffine, gvalues, gbias, gresidual = backward(
            wants, *operands, pattern, gy, by_statistics, passed, ctx.shape
        )
        return None, gx, *flat(gaffine), None, gvalues, gbias, None, None, gresidual, None, None


def _backward(
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
    gx, gaffine, gvalues, gbias = passed, None, None, None
    if wants.bias:
        # Deviations from the mean add up to 0: only the mean's own gradient is left of statistics.
        gbias = sparse_conv2d_grad_bias(gy, values.dtype)
        if by_statistics is not None:
            gbias = gbias + by_statistics.affine.shift * (gy.numel() // gy.shape[1])
    watching = wants.values and watch.watchers and are_plain((values, x, gy))
    if by_statistics is not None and (wants.residual or watching):
        gy, by_statistics = elementwise.whole_grad(gy, by_statistics), None
    by, wants_input = prologue.affine, wants.x or wants.affine
    weight = values, *pattern
    y_numbers = () if by_statistics is None else (by_statistics.y, *by_statistics.affine)
    together = wants_input and wants.values
    if together and are_plain((gy, *y_numbers, *weight, x, *flat(by), passed)):
        gx, gscale, gshift, gvalues = library.sparse_conv2d_fused_backward(
            gy, by_statistics, *weight, x, prologue, passed, shape
        )
    else:
        if wants_input:
            gx, gscale, gshift = sparse_conv2d_fused_grad_input(
                gy, by_statistics, *weight, x, prologue, passed, shape
            )
        if wants.values:
            gvalues = sparse_conv2d_fused_grad_weight(
                x, prologue, gy, by_statistics, *pattern, shape, values.dtype
            ).view(values.shape)
    if wants_input and by is not None:
        gaffine = Affine(-by.scale * gshift, gscale, gshift)
    if watching:
        z = composed.activated(x.detach(), prologue)
        for watcher in watch.living():
            watcher.passed(values.detach(), z, gy.detach(), shape)
    return Grads(gx, gaffine, gvalues, gbias, gy if wants.residual else None)
