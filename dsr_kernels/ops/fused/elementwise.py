"""What batch norm, ReLU and additions leave to do where no sparse convolution can take them in.

Each is one pass over its operands, and so is its derivative. Derivatives of higher order are made
of these again, or of torch's operations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from dsr_kernels.backends.cpu_elementwise import takes
from dsr_kernels.backends.fused import Affine, StatisticsGrad, flat
from dsr_kernels.ops.autograd import are_plain, is_recorded
from dsr_kernels.ops.fused import composed
from dsr_kernels.ops.fused import elementwise_library as library
from dsr_kernels.ops.saved import Gradients

OPS = torch.ops.dsr_kernels


def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [C] of x [N, C, H, W], in float32 (float64 for a float64 x).

    Raises ValueError for an x without a number per channel.
    """
    if not are_plain((x,)):
        mean, variance = OPS.channel_moments.default(x)
    elif is_recorded((x,)):
        mean, variance = ChannelMoments.apply(library.channel_moments, x)
    else:
        mean, variance = library.channel_moments(x)
    return mean, variance


def channel_affine(
    x: Tensor,  # [N, C, H, W]
    by: Affine,
    relu: bool = False,
    other: Tensor | None = None,  # [N, C, H, W]
    other_by: Affine | None = None,
) -> Tensor:
    """relu(affine(x) + affine(other)), in x's dtype: the end of a ResNet's block in one pass.

    Raises ValueError for an `other` that is not like x, and for numbers that are not [C] in float32
    (float64 for a float64 x).
    """
    tensors = (x, *by, other, *flat(other_by))
    if not are_plain(tensors):
        return OPS.channel_affine.default(x, *by, relu, other, *flat(other_by))
    if is_recorded(tensors):
        return ChannelAffine.apply(library.channel_affine, x, *by, relu, other, *flat(other_by))
    return library.channel_affine(x, by, relu, other, other_by)


def channel_affine_grad(
    grad: Tensor,  # [N, C, H, W]
    x: Tensor,  # [N, C, H, W]
    by: Affine,
    relu: bool,
    other: Tensor | None,  # [N, C, H, W], where it has an affine map
    other_by: Affine | None,
    out: Tensor | None,  # [N, C, H, W], the output: with ReLU, where other has no affine map
) -> tuple[Tensor, Tensor, Tensor]:
    """(gx, gother, sums [2 or 3, C]): see elementwise_library. It has no derivative."""
    if are_plain((grad, x, *by, other, *flat(other_by), out)):
        return library.channel_affine_grad(grad, x, by, relu, other, other_by, out)
    return OPS.channel_affine_grad.default(grad, x, *by, relu, other, *flat(other_by), out)


def whole_grad(grad: Tensor, by_statistics: StatisticsGrad | None) -> Tensor:
    """composed.whole_grad, in one pass where nothing is recorded and there is a kernel for it."""
    if by_statistics is None:
        return grad
    y, by = by_statistics
    plain = not torch.is_grad_enabled() and are_plain((grad, y, *by))
    if plain and takes(y) and grad.dtype == y.dtype:
        return library.channel_affine(y, by, False, grad, None)
    return composed.whole_grad(grad, by_statistics)


# --- derivatives ----------------------------------------------------------------------------------


class Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    needs_input_grad: tuple[bool, ...]
    relu: bool


class ChannelMoments(torch.autograd.Function):
    """`kernel` is the op that computes: library's, or the dispatcher's below autograd."""

    @staticmethod
    def forward(
        ctx: Context, kernel: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor
    ) -> tuple[Tensor, Tensor]:
        mean, variance = kernel(x)
        ctx.save_for_backward(x, mean)
        ctx.set_materialize_grads(False)
        return mean, variance

    @staticmethod
    def backward(ctx: Context, gmean: Tensor | None, gvariance: Tensor | None) -> Gradients:
        if gmean is None and gvariance is None:
            return None, None
        x, mean = ctx.saved_tensors
        return None, channel_affine(x, composed.moments_grad(x, mean, gmean, gvariance))


class ChannelAffine(torch.autograd.Function):
    """`kernel` is the op that computes: library's, or the dispatcher's below autograd."""

    @staticmethod
    def forward(
        ctx: Context,
        kernel: Callable[..., Tensor],
        x: Tensor,
        center: Tensor,
        scale: Tensor,
        shift: Tensor,
        relu: bool,
        other: Tensor | None,
        other_center: Tensor | None,
        other_scale: Tensor | None,
        other_shift: Tensor | None,
    ) -> Tensor:
        by = Affine(center, scale, shift)
        other_by = library.other_affine(other_center, other_scale, other_shift)
        out = kernel(x, by, relu, other, other_by)
        # Whether ReLU let a number through is seen from the inputs, if they are kept anyway.
        told_by_out = relu and other is not None and other_by is None
        ctx.save_for_backward(
            x,
            *by,
            None if other_by is None else other,  # type: ignore[arg-type]
            *flat(other_by),  # type: ignore[arg-type]
            out if told_by_out else None,  # type: ignore[arg-type]
        )
        ctx.relu = relu
        return out

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Gradients:
        x, center, scale, shift, other, other_center, other_scale, other_shift, out = (
            ctx.saved_tensors
        )
        by = Affine(center, scale, shift)
        other_by = library.other_affine(other_center, other_scale, other_shift)
        operands = grad, x, by, ctx.relu, other, other_by, out
        gother: Tensor | None
        sums: tuple[Tensor, ...]
        if torch.is_grad_enabled():
            gx, gother, sums = library.composed_grad(*operands)
        else:
            gx, gother, rows = channel_affine_grad(*operands)
            sums = rows.unbind()
        gshift, gscale = sums[0], sums[1]
        gby = Affine(-scale * gshift, gscale, gshift)
        gother_by = None
        if other_by is not None:
            gother_by = Affine(-other_scale * gshift, sums[2], gshift)
        elif out is None:
            gother = grad  # added as it is
        gother = gother if ctx.needs_input_grad[6] else None
        return None, gx, *gby, None, gother, *flat(gother_by)
