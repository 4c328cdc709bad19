"""The operations as torch's dispatcher calls them: torch.ops.dsr_kernels.*, with flat arguments.

An op has three implementations: the kernel for every device (a tensor of a device without kernels
reaches the error that says so in words), the fake for tensors without memory, and at the Autograd
key the derivative, which calls the op again below that key. A schema knows no ConvShape, so each
function here takes the five fields and hands on the one value.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from dsr_kernels.backends.conv_shape import ConvShape, conv_shape
from dsr_kernels.ops import autograd, batching, flops, library, results

Op = Callable[..., Tensor]

# --- from flat arguments to a ConvShape: what the dispatcher passes, what `op` takes --------------


def _flat_conv2d(op: Op) -> Op:
    def call(
        x: Tensor,
        values: Tensor,
        bias: Tensor | None,
        crow_indices: Tensor,
        col_indices: Tensor,
        weight_shape: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Tensor:
        shape = conv_shape(weight_shape, stride, padding, dilation, groups)
        return op(x, values, bias, crow_indices, col_indices, shape)

    return call


def _flat_grad_input(op: Op) -> Op:
    def call(
        grad: Tensor,
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        input_size: Sequence[int],
        weight_shape: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        channels_last: bool,
    ) -> Tensor:
        shape = conv_shape(weight_shape, stride, padding, dilation, groups)
        return op(grad, values, crow_indices, col_indices, input_size, shape, channels_last)

    return call


def _flat_grad_weight(op: Op) -> Op:
    def call(
        x: Tensor,
        grad: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        weight_shape: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        dtype: torch.dtype,
    ) -> Tensor:
        shape = conv_shape(weight_shape, stride, padding, dilation, groups)
        return op(x, grad, crow_indices, col_indices, shape, dtype)

    return call


def _flat_grad_bias(op: Op) -> Op:
    return op  # no shape among its arguments


# --- at the Autograd key --------------------------------------------------------------------------


def _with_derivative(function: type[torch.autograd.Function], overload: Op) -> Op:
    """Records `function`, whose forward pass calls `overload` again below autograd."""

    def below(*args: object) -> Tensor:
        flat = (field for a in args for field in (a if isinstance(a, ConvShape) else (a,)))
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*flat)

    def call(*args: object) -> Tensor:
        tensors = tuple(a for a in args if isinstance(a, Tensor))
        if is_in_torch_dispatch_mode():
            flops.tell_counters()
        refuse_unsupported(tensors)
        if autograd.is_recorded(tensors):
            return record(function, below, *args)
        return below(*args)

    return call


def record(
    function: type[torch.autograd.Function], below: Callable[..., Any], *args: object
) -> Tensor:
    """function.apply(below, *args), at one level of functorch where its transforms are active.

    Function.apply wants setup_context then, for a Function that meets all levels at once. Below the
    dispatcher there is one level, and torch's own operations are recorded in the same way.
    """
    if not torch._C._are_functorch_transforms_active():
        return function.apply(below, *args)

    def next_level(*args: object) -> Tensor:  # which records, too, though a forward pass does not
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return below(*args)

    with enable_single_level_autograd_function():
        return super(torch.autograd.Function, function).apply(next_level, *args)  # type: ignore[misc]


def refuse_unsupported(tensors: tuple[Tensor, ...]) -> None:
    """Raises NotImplementedError for forward-mode AD and for an export to ONNX."""
    _refuse_tangents(tensors)
    onnx = sys.modules.get("torch.onnx")  # its import takes long; without it there is no export
    if onnx is not None and onnx.is_in_onnx_export():
        raise NotImplementedError(
            "torch.onnx.export: ONNX has no operation for sparse layers; export the dense model, "
            "dsr_kernels.densify(model), of a fused one after dsr_kernels.unfuse(model)"
        )


def _refuse_tangents(tensors: tuple[Tensor, ...]) -> None:
    if forward_ad._current_level < 0:
        return
    for tensor in tensors:
        if forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "dsr_kernels: forward-mode AD (forward_ad.make_dual, torch.func.jvp, jacfwd and "
                "hessian) is not supported; the sparse layers have reverse-mode derivatives of any "
                "order: torch.func.grad, jacrev, and jacrev(jacrev(f)) for hessian(f)"
            )


def refuse_functorch() -> None:
    """Of operations that fused models call. Under functorch those run what was written instead."""
    if torch._C._are_functorch_transforms_active():
        raise NotImplementedError(
            "dsr_kernels: torch.func.grad, vjp and jacrev are not supported by the fused "
            "operations; use the layers themselves, or torch.autograd, of any order"
        )


# --- registration ---------------------------------------------------------------------------------


def register(
    name: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    recorded: Callable[..., Any],
) -> None:
    """The three implementations of an op, with the flat arguments of its schema."""
    library.NAMESPACE.impl(name, kernel, "CompositeExplicitAutograd")
    library.NAMESPACE.impl(name, recorded, "Autograd")
    torch.library.register_fake(f"dsr_kernels::{name}", fake, lib=library.NAMESPACE)


class _Registered(NamedTuple):
    name: str
    flat: Callable[[Op], Op]
    kernel: Op
    fake: Op
    function: type[torch.autograd.Function]


for _op in (
    _Registered(
        "sparse_conv2d",
        _flat_conv2d,
        library.sparse_conv2d,
        results.conv2d_result,
        autograd.SparseConv,
    ),
    _Registered(
        "sparse_conv2d_grad_input",
        _flat_grad_input,
        library.sparse_conv2d_grad_input,
        results.grad_input_result,
        autograd.SparseConvGradInput,
    ),
    _Registered(
        "sparse_conv2d_grad_weight",
        _flat_grad_weight,
        library.sparse_conv2d_grad_weight,
        results.grad_weight_result,
        autograd.SparseConvGradWeight,
    ),
    _Registered(
        "sparse_conv2d_grad_bias",
        _flat_grad_bias,
        library.sparse_conv2d_grad_bias,
        results.grad_bias_result,
        autograd.SparseConvGradBias,
    ),
):
    _overload = getattr(torch.ops.dsr_kernels, _op.name).default
    _autograd = _with_derivative(_op.function, _overload)
    register(_op.name, _op.flat(_op.kernel), _op.flat(_op.fake), _op.flat(_autograd))
    batching.batch_op(_op.name, _op.name in ("sparse_conv2d", "sparse_conv2d_grad_input"))
