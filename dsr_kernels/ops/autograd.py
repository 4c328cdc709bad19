"""The derivatives of the ops, each made of the ops themselves, and the ways to reach them.

A graph belongs to the values and the pattern it was recorded with. They are saved for backward, and
`SparseModule.replace_topology` advances their versions, so a backward through an older topology
stops with an error, whether or not the number of non-zeros changed.

An op is called in one of two ways. Plain tensors in eager mode go straight to the autograd.Function
and the kernel. Everything else (torch.compile, tracing, fake tensors, tensor subclasses, dispatch
modes, functorch, forward-mode AD, lazily negated tensors) goes through torch's dispatcher, which
meets the same Function under its Autograd key; the dispatcher and its boxing would otherwise be
most of the time of a small layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dsr_kernels.ops import library, watch


def _tell(event: str, *args) -> None:
    if not _are_plain(args):
        return
    for reference in tuple(watch.watchers):
        if (watcher := reference()) is not None:
            getattr(watcher, event)(*args)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: Callable, x, values, bias, crow, col, *shape) -> Tensor:
        # values is saved even where only its own gradient is asked for: its version is what tells a
        # rewired layer from the one this graph was recorded with.
        ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, values, crow, col)
        ctx.shape, ctx.input_size, ctx.last = shape, x.shape[1:], library.channels_last(x)
        if watch.watchers:
            _tell("used", values)
        return run(x, values, bias, crow, col, *shape)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, values, crow, col = _saved(ctx)
        _, wants_x, wants_values, wants_bias, *rest = ctx.needs_input_grad
        gx = gvalues = gbias = None
        if wants_x:
            gx = grad_input(grad, values, crow, col, ctx.input_size, *ctx.shape, ctx.last)
        if wants_values:
            gvalues = grad_weight(x, grad, crow, col, *ctx.shape, values.dtype)
            gvalues = gvalues.view(values.shape)
            if watch.watchers:
                _tell("passed", values.detach(), x.detach(), grad.detach(), *ctx.shape)
        if wants_bias:
            gbias = grad_bias(grad, values.dtype)
        return None, gx, gvalues, gbias, *[None] * len(rest)


class _GradInput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: Callable, grad, values, crow, col, input_size, *shape_and_last) -> Tensor:
        ctx.save_for_backward(grad if ctx.needs_input_grad[2] else None, values, crow, col)
        ctx.shape = shape_and_last[:-1]
        return run(grad, values, crow, col, input_size, *shape_and_last)

    @staticmethod
    def backward(ctx, ggx: Tensor) -> tuple[Tensor | None, ...]:
        grad, values, crow, col = _saved(ctx)
        _, wants_grad, wants_values, *rest = ctx.needs_input_grad
        ggrad = gvalues = None
        if wants_grad:
            ggrad = conv(ggx, values, None, crow, col, *ctx.shape)
        if wants_values:
            gvalues = grad_weight(ggx, grad, crow, col, *ctx.shape, values.dtype)
            gvalues = gvalues.view(values.shape)
        return None, ggrad, gvalues, *[None] * len(rest)


class _GradWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: Callable, x, grad, crow, col, *shape_and_dtype) -> Tensor:
        ctx.save_for_backward(x, grad, crow, col)
        ctx.shape = shape_and_dtype[:-1]
        return run(x, grad, crow, col, *shape_and_dtype)

    @staticmethod
    def backward(ctx, ggvalues: Tensor) -> tuple[Tensor | None, ...]:
        x, grad, crow, col = _saved(ctx)
        _, wants_x, wants_grad, *rest = ctx.needs_input_grad
        gx = ggrad = None
        if wants_x:
            last = library.channels_last(x)
            gx = grad_input(grad, ggvalues, crow, col, x.shape[1:], *ctx.shape, last)
        if wants_grad:
            ggrad = conv(x, ggvalues, None, crow, col, *ctx.shape)
        return None, gx, ggrad, *[None] * len(rest)


class _GradBias(torch.autograd.Function):
    @staticmethod
    def forward(ctx, run: Callable, grad, dtype) -> Tensor:
        ctx.size, ctx.dtype = grad.shape, grad.dtype
        return run(grad, dtype)

    @staticmethod
    def backward(ctx, ggbias: Tensor) -> tuple[Tensor | None, ...]:
        return None, ggbias.to(ctx.dtype)[:, None, None].expand(ctx.size), None


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


class _Op(NamedTuple):
    """One op: its kernel, its derivative, and its overload in torch's dispatcher."""

    kernel: Callable
    function: type[torch.autograd.Function]
    overload: Callable

    def __call__(self, *args) -> Tensor:
        if torch.compiler.is_compiling() or not _are_plain(args):
            return self.overload(*args)
        if torch.is_grad_enabled() and _any_requires_grad(args):
            return self.function.apply(self.kernel, *args)
        return self.kernel(*args)

    def under_dispatcher(self, *args) -> Tensor:
        """The kernel of the Autograd key."""
        _refuse_tangents(args)
        if torch.is_grad_enabled() and _any_requires_grad(args):
            return self.function.apply(self._below_autograd, *args)
        return self._below_autograd(*args)

    def _below_autograd(self, *args) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload(*args)


def _are_plain(args: tuple) -> bool:
    """Whether a kernel may read the memory of every tensor as it stands, unseen by any mode."""
    for arg in args[:5]:  # every op's tensors come first
        kind = type(arg)
        if kind is Tensor or kind is Parameter:
            if arg.is_neg():
                return False
        elif isinstance(arg, Tensor):
            return False
    return (
        (args[0].is_cpu or args[0].is_cuda)
        and forward_ad._current_level < 0
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._get_tracing_state() is None
    )


def _refuse_tangents(args: tuple) -> None:
    if forward_ad._current_level < 0:
        return
    for arg in args[:5]:
        if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
            raise NotImplementedError(
                "dsr_kernels: forward-mode AD (forward_ad.make_dual, torch.func.jvp) is not "
                "supported; the sparse layers have reverse-mode derivatives of any order"
            )


def _any_requires_grad(args: tuple) -> bool:
    return any(isinstance(arg, Tensor) and arg.requires_grad for arg in args[:3])


def _register(name: str, kernel: Callable, function: type[torch.autograd.Function]) -> _Op:
    op = _Op(kernel, function, getattr(torch.ops.dsr_kernels, name).default)
    library.library.impl(name, library.from_dispatcher(op.under_dispatcher), "Autograd")
    return op


conv = _register("sparse_conv2d", library.conv, _Conv)
grad_input = _register("sparse_conv2d_grad_input", library.grad_input, _GradInput)
grad_weight = _register("sparse_conv2d_grad_weight", library.grad_weight, _GradWeight)
grad_bias = _register("sparse_conv2d_grad_bias", library.grad_bias, _GradBias)
