"""A linear layer: the 1x1 convolution of images of one pixel, without the views that make them.

Views would be most of the time of a small layer, for autograd records each of them. So plain
tensors have a Function of their own here, and calls prepared for their own sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels.backends.calls import BackwardCall, ForwardCall, GradWeightCall, look
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.held import HeldPattern, exchange, hold, take_values
from dsr_kernels.backends.pattern import Pattern
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.ops import autograd, library, watch
from dsr_kernels.ops.autograd import are_plain, is_recorded
from dsr_kernels.ops.results import check_held_tensors, check_tensors
from dsr_kernels.ops.saved import (
    Context,
    Gradients,
    keep_found,
    recorded_with,
    saved,
    version_of,
)


def sparse_linear(
    x: Tensor,  # [..., I]
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,  # [O // block_size + 1] int32
    col_indices: Tensor,  # [blocks] int32
    rows: int,  # O
) -> Tensor:
    """y [..., O] = F.linear(x, W, bias)."""
    weight = values, bias, crow_indices, col_indices
    if not are_plain((x, *weight)):
        check_held_tensors("SparseLinear", x, *weight, rows)
        y = autograd.sparse_conv2d(images_of(x), *weight, shape_of(rows, x.shape[-1]))
        return y.reshape(*x.shape[:-1], rows)
    if is_recorded((x, values, bias)):
        version = version_of(values)
        return recorded_with(SparseLinear.apply(x, *weight, rows), version)
    return _forward(x, *weight, rows)[0]


def images_of(x: Tensor) -> Tensor:
    """[..., I] as [N, I, 1, 1]."""
    return x.reshape(-1, x.shape[-1], 1, 1)


def shape_of(rows: int, features: int) -> ConvShape:
    return ConvShape((rows, features, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)


class SparseLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        crow_indices: Tensor,
        col_indices: Tensor,
        rows: int,
    ) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values)  # type: ignore[arg-type]
        ctx.input_size, ctx.shape = x.shape, shape_of(rows, x.shape[-1])
        if watch.watchers:
            for watcher in watch.living():
                watcher.used(values)
        y, found = _forward(x, values, bias, crow_indices, col_indices, rows)
        keep_found(ctx, found, crow_indices, col_indices)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Gradients:
        (x, values), pattern = saved(ctx, 1)
        wants_x, wants_values, wants_bias, *_ = ctx.needs_input_grad
        shape, gx, gvalues, gbias = ctx.shape, None, None, None
        plain = not torch.is_grad_enabled() and are_plain((grad, x, values))
        if plain and wants_values and ctx.found is not None:
            held = HeldPattern(pattern, ctx.found)
            if wants_x:
                gx, gvalues = _backward(x, grad, values, held, shape)
            else:
                gvalues = _backward_weight(x, grad, values, held, shape)
        elif wants_x:
            of_images = images_of(grad), values, *pattern, (ctx.input_size[-1], 1, 1), shape, False
            gx = autograd.sparse_conv2d_grad_input(*of_images).reshape(ctx.input_size)
        if wants_values:
            if gvalues is None:
                images = images_of(x), images_of(grad)
                gvalues = autograd.sparse_conv2d_grad_weight(*images, *pattern, shape, values.dtype)
                gvalues = gvalues.view(values.shape)
            if watch.watchers and are_plain((values, x, grad)):
                for watcher in watch.living():
                    images = images_of(x.detach()), images_of(grad.detach())
                    watcher.passed(values.detach(), *images, shape)
        if wants_bias:
            grad_bias = library if plain else autograd
            gbias = grad_bias.sparse_conv2d_grad_bias(images_of(grad), values.dtype)
        return gx, gvalues, gbias, None, None, None


def _forward(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    rows: int,
) -> tuple[Tensor, Pattern | None]:
    """(y, the pattern that it was computed with)."""
    shape, tensors = shape_of(rows, x.shape[-1]), (x, values, bias)
    seen = look("linear", shape, x)
    with exchange:
        found = patterns.known(crow_indices, col_indices)
        call: ForwardCall | None = patterns.call(found, seen, *tensors)
        if call is not None:
            values = take_values(values)
        else:
            check_tensors("SparseLinear", x, values, bias, crow_indices, col_indices, rows)
            held = hold(values, crow_indices, col_indices)
    if call is not None:
        return call.into(call.empty(x.dtype), x, values, bias), found
    images, weight = images_of(x), (held.values, bias, *held.pattern.indices)
    y, found = library.sparse_conv2d_found(images, *weight, shape)
    of_images = look("forward", shape, images), images, held.values, bias
    # Not a view: autograd lets nobody write in place to one that a Function returns.
    y = torch.ops.aten._unsafe_view.default(y, [*x.shape[:-1], rows])
    _keep(found, seen, tensors, patterns.call(found, *of_images), y)
    return y, found


def _backward(
    x: Tensor, grad: Tensor, values: Tensor, held: HeldPattern, shape: ConvShape
) -> tuple[Tensor, Tensor]:
    """(gx, gvalues of values' shape)."""
    seen, tensors = look("linear backward", shape, x), (x, grad, values)
    call: BackwardCall | None = patterns.call(held.found, seen, *tensors)
    if call is not None:
        gx, gvalues = call.empty(grad.dtype), torch.empty_like(values)
        call.into(gx, gvalues, grad, values, x)
        return gx, gvalues
    images = images_of(x), images_of(grad)
    gx, gvalues = library.sparse_conv2d_backward(*images, values, held, shape)
    of_images = look("backward", shape, images[0]), *images, values
    gx = gx.reshape(x.shape)
    _keep(held.found, seen, tensors, patterns.call(held.found, *of_images), gx)
    return gx, gvalues


def _backward_weight(
    x: Tensor, grad: Tensor, values: Tensor, held: HeldPattern, shape: ConvShape
) -> Tensor:
    """gvalues of values' shape, alone."""
    seen, tensors = look("linear grad_weight", shape, x), (x, grad)
    call: GradWeightCall | None = patterns.call(held.found, seen, *tensors)
    if call is not None:
        return call.into(torch.empty_like(values), x, grad)
    images = images_of(x), images_of(grad)
    gvalues = library.sparse_conv2d_backward_weight(*images, values, held, shape)
    of_images = look("grad_weight", shape, images[0]), *images
    call = patterns.call(held.found, *of_images)
    if call is not None and x.is_contiguous() and grad.is_contiguous():
        patterns.keep_call(held.found, seen, tensors, call)
    return gvalues


def _keep(
    found: Pattern | None,
    seen: object,
    tensors: tuple[Tensor | None, ...],
    of_images: ForwardCall | BackwardCall | None,
    result: Tensor,
) -> None:
    """Keeps a call that was prepared for images, for tensors that they are views of."""
    activations = [each for each in tensors if each is not None and each.dim() == result.dim()]
    if found is None or of_images is None or not all(t.is_contiguous() for t in activations):
        return
    patterns.keep_call(found, seen, tensors, of_images.reshaped(result))
