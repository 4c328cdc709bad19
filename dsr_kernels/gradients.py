"""The derivatives of the ops, registered with autograd; each is made of the three ops themselves.

A graph belongs to the values and the pattern it was recorded with. They are saved for backward, and
`SparseModule.replace_topology` advances their versions, so a backward through an older topology
stops with an error, whether or not the number of non-zeros changed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import channels_last, forward_op, grad_input_op, grad_weight_op, library


def _saved(ctx) -> tuple[Tensor | None, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "modified by an inplace operation" not in str(error):
            raise
        raise RuntimeError(
            "sparse_conv2d: the values or the pattern of a sparse layer, or its input, changed "
            "between forward and backward (an optimizer step or a rewire?); this graph belongs to "
            f"weights that no longer exist, run the forward again. torch says: {error}"
        ) from error


def _forward_setup(ctx, inputs, output) -> None:
    x, values, _, crow, col, *ctx.shape = inputs
    # values is saved even where only its own gradient is asked for: its version is what tells a
    # rewired layer from the one this graph was recorded with.
    ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, values, crow, col)
    ctx.input_size, ctx.last = x.shape[1:], channels_last(x)


def _forward_backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, crow, col = _saved(ctx)
    gx = gvalues = gbias = None
    if ctx.needs_input_grad[0]:
        gx = grad_input_op(grad, values, crow, col, ctx.input_size, *ctx.shape, ctx.last)
    if ctx.needs_input_grad[1]:
        gvalues = grad_weight_op(x, grad, crow, col, *ctx.shape, values.dtype)
    if ctx.needs_input_grad[2]:
        gbias = grad.sum((0, 2, 3), dtype=values.dtype)
    return gx, gvalues, gbias, *[None] * 7


def _grad_input_setup(ctx, inputs, output) -> None:
    grad, values, crow, col, _, *ctx.shape, _ = inputs
    ctx.save_for_backward(grad if ctx.needs_input_grad[1] else None, values, crow, col)


def _grad_input_backward(ctx, ggx: Tensor) -> tuple[Tensor | None, ...]:
    grad, values, crow, col = _saved(ctx)
    ggrad = gvalues = None
    if ctx.needs_input_grad[0]:
        ggrad = forward_op(ggx, values, None, crow, col, *ctx.shape)
    if ctx.needs_input_grad[1]:
        gvalues = grad_weight_op(ggx, grad, crow, col, *ctx.shape, values.dtype)
    return ggrad, gvalues, *[None] * 9


def _grad_weight_setup(ctx, inputs, output) -> None:
    x, grad, crow, col, *ctx.shape, _ = inputs
    ctx.save_for_backward(x, grad, crow, col)


def _grad_weight_backward(ctx, ggvalues: Tensor) -> tuple[Tensor | None, ...]:
    x, grad, crow, col = _saved(ctx)
    gx = ggrad = None
    if ctx.needs_input_grad[0]:
        gx = grad_input_op(grad, ggvalues, crow, col, x.shape[1:], *ctx.shape, channels_last(x))
    if ctx.needs_input_grad[1]:
        ggrad = forward_op(x, ggvalues, None, crow, col, *ctx.shape)
    return gx, ggrad, *[None] * 8


for _name, _backward, _setup in (
    ("sparse_conv2d", _forward_backward, _forward_setup),
    ("sparse_conv2d_grad_input", _grad_input_backward, _grad_input_setup),
    ("sparse_conv2d_grad_weight", _grad_weight_backward, _grad_weight_setup),
):
    torch.library.register_autograd(
        f"dsr_kernels::{_name}", _backward, setup_context=_setup, lib=library
    )
