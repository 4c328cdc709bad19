"""The operations with their derivatives, each made of the operations themselves.

A graph belongs to the values and the pattern it was recorded with. `SparseModule.replace_topology`
advances their versions, so a backward through an older topology stops with an error, whether or not
the number of non-zeros changed.

An op is called in one of two ways. Plain tensors in eager mode go straight to the autograd.Function
and the kernel in `library`. Everything else (torch.compile, tracing, fake tensors, tensor
subclasses, dispatch modes, functorch, forward-mode AD, lazily negated tensors) goes through torch's
dispatcher, which meets the same Function in `dispatcher`; the dispatcher and its boxing would
otherwise be most of the time of a small layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.held import HeldPattern
from dsr_kernels.ops import flops, library, results, watch
from dsr_kernels.ops.saved import (
    Context,
    Gradients,
    keep_found,
    keep_pattern,
    keep_weight,
    recorded_with,
    saved,
    version_of,
)

OPS = torch.ops.dsr_kernels

# --- the operations -------------------------------------------------------------------------------


def sparse_conv2d(
    x: Tensor,  # [N, C, H, W]
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,  # [O // block_size + 1] int32
    col_indices: Tensor,  # [blocks] int32
    shape: ConvShape,
) -> Tensor:
    """y [N, O, P, Q] = conv2d(pad(x), W) + bias."""
    if not are_plain((x, values, bias, crow_indices, col_indices)):
        return OPS.sparse_conv2d.default(x, values, bias, crow_indices, col_indices, *shape)
    if is_recorded((x, values, bias)):
        kernel, version = library.sparse_conv2d, version_of(values)
        y = SparseConv.apply(kernel, x, values, bias, crow_indices, col_indices, shape)
        return recorded_with(y, version)
    return library.sparse_conv2d(x, values, bias, crow_indices, col_indices, shape)


def sparse_conv2d_grad_input(
    grad: Tensor,  # [N, O, P, Q]
    values: Tensor,  # [blocks, block_size] or [nnz]
    crow_indices: Tensor,
    col_indices: Tensor,
    input_size: Sequence[int],  # (C, H, W)
    shape: ConvShape,
    channels_last: bool,  # the memory format of the result
) -> Tensor:
    """gx [N, C, H, W] = conv_transpose2d(grad, W), without the padding's share."""
    if not are_plain((grad, values, crow_indices, col_indices)):
        return OPS.sparse_conv2d_grad_input.default(
            grad, values, crow_indices, col_indices, input_size, *shape, channels_last
        )
    if is_recorded((grad, values)):
        kernel = library.sparse_conv2d_grad_input
        return SparseConvGradInput.apply(
            kernel, grad, values, crow_indices, col_indices, input_size, shape, channels_last
        )
    return library.sparse_conv2d_grad_input(
        grad, values, crow_indices, col_indices, input_size, shape, channels_last
    )


def sparse_conv2d_grad_weight(
    x: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
    dtype: torch.dtype,  # of the result: the values'
) -> Tensor:
    """gvalues [nnz] = the dense weight's gradient at the non-zeros."""
    if not are_plain((x, grad, crow_indices, col_indices)):
        return OPS.sparse_conv2d_grad_weight.default(
            x, grad, crow_indices, col_indices, *shape, dtype
        )
    if is_recorded((x, grad)):
        kernel = library.sparse_conv2d_grad_weight
        return SparseConvGradWeight.apply(kernel, x, grad, crow_indices, col_indices, shape, dtype)
    return library.sparse_conv2d_grad_weight(x, grad, crow_indices, col_indices, shape, dtype)


def sparse_conv2d_grad_bias(
    grad: Tensor,  # [N, O, P, Q]
    dtype: torch.dtype,  # of the result: the values'
) -> Tensor:
    """gbias [O] = grad summed over batch and image."""
    if not are_plain((grad,)):
        return OPS.sparse_conv2d_grad_bias.default(grad, dtype)
    if is_recorded((grad,)):
        return SparseConvGradBias.apply(library.sparse_conv2d_grad_bias, grad, dtype)
    return library.sparse_conv2d_grad_bias(grad, dtype)


def is_recorded(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether autograd is to record an op of these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def are_plain(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a kernel may read the memory of every tensor as it stands, unseen by any mode."""
    if torch.compiler.is_compiling():
        return False
    if is_in_torch_dispatch_mode():
        flops.tell_counters()
        return False
    for tensor in tensors:
        if type(tensor) is Tensor or type(tensor) is Parameter:
            if tensor.is_neg():
                return False
        elif tensor is not None:
            return False
    first = tensors[0]
    return (
        first is not None
        and (first.is_cpu or first.is_cuda)
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


# --- their derivatives ----------------------------------------------------------------------------


class SparseConv(torch.autograd.Function):
    """`kernel` is the op that computes: library's, or the dispatcher's below autograd."""

    @staticmethod
    def forward(
        ctx: Context,
        kernel: Callable[..., Tensor],
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        crow_indices: Tensor,
        col_indices: Tensor,
        shape: ConvShape,
    ) -> Tensor:
        # values is saved even where only its own gradient is asked for: its version tells whether
        # it is still what this graph was recorded with.
        ctx.shape = shape
        if ctx.needs_input_grad[2]:
            ctx.save_for_backward(x, values)
        else:
            ctx.save_for_backward(None, values)  # type: ignore[arg-type]
            ctx.input_size, ctx.channels_last = x.shape[1:], results.channels_last(x)
        if watch.watchers and are_plain((values,)):
            for watcher in watch.living():
                watcher.used(values)
        if kernel is not library.sparse_conv2d:
            keep_weight(ctx, False, values, crow_indices, col_indices)
            return kernel(x, values, bias, crow_indices, col_indices, shape)
        y, found = library.sparse_conv2d_found(x, values, bias, crow_indices, col_indices, shape)
        keep_found(ctx, found, crow_indices, col_indices)
        return y

    @staticmethod
    def backward(ctx: Context, grad: Tensor) -> Gradients:
        (x, values), pattern = saved(ctx, 1)
        _, wants_x, wants_values, wants_bias, _, _, _ = ctx.needs_input_grad
        shape = ctx.shape
        gx = gvalues = gbias = None
        plain = not torch.is_grad_enabled() and are_plain((grad, x, values))
        if plain and wants_values and ctx.found is not None:
            held = HeldPattern(pattern, ctx.found)
            if wants_x:
                gx, gvalues = library.sparse_conv2d_backward(x, grad, values, held, shape)
            else:
                gvalues = library.sparse_conv2d_backward_weight(x, grad, values, held, shape)
        elif wants_x:
            size = ctx.input_size if x is None else x.shape[1:]
            last = ctx.channels_last if x is None else results.channels_last(x)
            gx = sparse_conv2d_grad_input(grad, values, *pattern, size, shape, last)
        if wants_values:
            if gvalues is None:
                gvalues = sparse_conv2d_grad_weight(x, grad, *pattern, shape, values.dtype)
                gvalues = gvalues.view(values.shape)
            if watch.watchers and are_plain((values, x, grad)):
                for watcher in watch.living():
                    watcher.passed(values.detach(), x.detach(), grad.detach(), shape)
        if wants_bias:
            grad_bias = library.sparse_conv2d_grad_bias if plain else sparse_conv2d_grad_bias
            gbias = grad_bias(grad, values.dtype)
        return None, gx, gvalues, gbias, None, None, None


class SparseConvGradInput(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        kernel: Callable[..., Tensor],
        grad: Tensor,
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        input_size: Sequence[int],
        shape: ConvShape,
        channels_last: bool,
    ) -> Tensor:
        kept = grad if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(kept, values)  # type: ignore[arg-type]
        plain = kernel is library.sparse_conv2d_grad_input
        values, crow_indices, col_indices = keep_weight(
            ctx, plain, values, crow_indices, col_indices
        )
        ctx.shape = shape
        return kernel(grad, values, crow_indices, col_indices, input_size, shape, channels_last)

    @staticmethod
    def backward(ctx: Context, ggx: Tensor) -> Gradients:
        (grad, values), pattern = saved(ctx, 1)
        _, wants_grad, wants_values, _, _, _, _, _ = ctx.needs_input_grad
        shape = ctx.shape
        ggrad = gvalues = None
        if wants_grad:
            ggrad = sparse_conv2d(ggx, values, None, *pattern, shape)
        if wants_values:
            gvalues = sparse_conv2d_grad_weight(ggx, grad, *pattern, shape, values.dtype)
            gvalues = gvalues.view(values.shape)
        return None, ggrad, gvalues, None, None, None, None, None


class SparseConvGradWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context,
        kernel: Callable[..., Tensor],
        x: Tensor,
        grad: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        shape: ConvShape,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.save_for_backward(x, grad)
        plain = kernel is library.sparse_conv2d_grad_weight
        crow_indices, col_indices = keep_pattern(ctx, plain, crow_indices, col_indices)
        ctx.shape = shape
        return kernel(x, grad, crow_indices, col_indices, shape, dtype)

    @staticmethod
    def backward(ctx: Context, ggvalues: Tensor) -> Gradients:
        (x, grad), pattern = saved(ctx)
        _, wants_x, wants_grad, _, _, _, _ = ctx.needs_input_grad
        shape = ctx.shape
        gx = ggrad = None
        if wants_x:
            last = results.channels_last(x)
            gx = sparse_conv2d_grad_input(grad, ggvalues, *pattern, x.shape[1:], shape, last)
        if wants_grad:
            ggrad = sparse_conv2d(x, ggvalues, None, *pattern, shape)
        return None, gx, ggrad, None, None, None, None


class SparseConvGradBias(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Context, kernel: Callable[..., Tensor], grad: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.grad_size, ctx.dtype = grad.shape, grad.dtype
        return kernel(grad, dtype)

    @staticmethod
    def backward(ctx: Context, ggbias: Tensor) -> Gradients:
        return None, ggbias.to(ctx.dtype)[:, None, None].expand(ctx.grad_size), None
