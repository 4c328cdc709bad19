"""The operations: schemas and kernels. `results` checks every argument.

    sparse_conv2d              y  [N, O, P, Q] = conv2d(pad(x), W) + bias
    sparse_conv2d_grad_input   gx [N, C, H, W] = conv_transpose2d(gy, W)
    sparse_conv2d_grad_weight  gvalues [nnz]   = (dense weight gradient) at the non-zeros
    sparse_conv2d_grad_bias    gbias [O]       = gy.sum((0, 2, 3))

W is (values, crow_indices, col_indices) of weight_shape (O, C // groups, KH, KW); `reference` holds
the meaning in plain torch. They are linear in each tensor argument and each other's
derivatives, so gradients of any order come from them. Values are float32 or float64; activations
have the same dtype, or bfloat16 / float16, computed in the values' dtype and returned in their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dsr_kernels.backends import cpu, cpu_calls, dispatch
from dsr_kernels.backends.calls import (
    BackwardCall,
    ForwardCall,
    GradWeightCall,
    Preparer,
    look,
)
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.held import HeldPattern, exchange, hold, hold_pattern, take_values
from dsr_kernels.backends.pattern import Pattern
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.ops.results import (
    channels_last,
    conv2d_result,
    grad_bias_result,
    grad_input_result,
    grad_weight_result,
)

SHAPE_SCHEMA = "int[4] weight_shape, int[2] stride, int[4] padding, int[2] dilation, int groups"
PATTERN_SCHEMA = "Tensor crow_indices, Tensor col_indices"

NAMESPACE = torch.library.Library("dsr_kernels", "DEF")
for _schema in (
    f"sparse_conv2d(Tensor x, Tensor values, Tensor? bias, {PATTERN_SCHEMA}, {SHAPE_SCHEMA})"
    " -> Tensor",
    f"sparse_conv2d_grad_input(Tensor grad, Tensor values, {PATTERN_SCHEMA}, SymInt[3] input_size,"
    f" {SHAPE_SCHEMA}, bool channels_last) -> Tensor",
    f"sparse_conv2d_grad_weight(Tensor x, Tensor grad, {PATTERN_SCHEMA}, {SHAPE_SCHEMA},"
    " ScalarType dtype) -> Tensor",
    "sparse_conv2d_grad_bias(Tensor grad, ScalarType dtype) -> Tensor",
):
    NAMESPACE.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


# --- kernels: a result, filled by the backend of its device ---------------------------------------


def sparse_conv2d(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    return sparse_conv2d_found(x, values, bias, crow_indices, col_indices, shape)[0]


def _preparer(result: Tensor) -> Preparer | None:
    """backends.cpu_calls, backends.cuda.calls or nothing."""
    return cpu_calls if result.is_cpu else dispatch.gpu_calls(result.device)


def sparse_conv2d_found(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> tuple[Tensor, Pattern | None]:
    """(y, the pattern that it was computed with)."""
    seen, tensors = look("forward", shape, x), (x, values, bias)
    with exchange:
        found = patterns.known(crow_indices, col_indices)
        call: ForwardCall | None = patterns.call(found, seen, *tensors)
        if call is not None:
            values = take_values(values)
        else:
            out = conv2d_result(x, values, bias, crow_indices, col_indices, shape)
            held = hold(values, crow_indices, col_indices)
            found = held.pattern.found
    if call is None:
        values, pattern = held.values, held.pattern.indices
        if (preparer := _preparer(out)) is not None:
            weight = held.weight
            call = preparer.prepare_forward(seen, tensors, out, x, weight, shape, (bias,))
    if call is not None:
        return call.into(call.empty(x.dtype), x, values, bias), found
    backend: dispatch.Backend = cpu if out.is_cpu else dispatch.gpu_backend(out.device)
    return backend.sparse_conv2d(out, x, values, bias, *pattern, shape), found


def sparse_conv2d_grad_input(
    grad: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    input_size: Sequence[int],
    shape: ConvShape,
    channels_last: bool,
) -> Tensor:
    with exchange:
        out = grad_input_result(
            grad, values, crow_indices, col_indices, input_size, shape, channels_last
        )
        held = hold(values, crow_indices, col_indices)
    backend: dispatch.Backend = cpu if out.is_cpu else dispatch.gpu_backend(out.device)
    return backend.sparse_conv2d_grad_input(out, grad, *held.weight, shape)


def sparse_conv2d_backward(
    x: Tensor,
    grad: Tensor,
    values: Tensor,
    held: HeldPattern,
    shape: ConvShape,
) -> tuple[Tensor, Tensor]:
    """(gx, gvalues of values' shape): on a CPU in one pass over what both read.

    The values are held, too.
    """
    seen, tensors = look("backward", shape, x), (x, grad, values)
    call: BackwardCall | None = patterns.call(held.found, seen, *tensors)
    if call is None:
        pattern, size, last = held.indices, x.shape[1:], channels_last(x)
        out = grad_input_result(grad, values, *pattern, size, shape, last)
        grad_weight_result(x, grad, *pattern, shape, values.dtype)
        if (preparer := _preparer(out)) is not None:
            weight = values, *pattern
            call = preparer.prepare_backward(seen, tensors, out, grad, x, weight, shape)
    if call is None:
        gx = sparse_conv2d_grad_input(grad, values, *pattern, size, shape, last)
        gvalues = sparse_conv2d_grad_weight(x, grad, *pattern, shape, values.dtype)
        return gx, gvalues.view(values.shape)
    gx = call.empty(grad.dtype)
    gvalues = torch.empty_like(values)
    call.into(gx, gvalues, grad, values, x)
    return gx, gvalues


def sparse_conv2d_backward_weight(
    x: Tensor,
    grad: Tensor,
    values: Tensor,
    held: HeldPattern,
    shape: ConvShape,
) -> Tensor:
    """gvalues of values' shape, alone: of a layer whose input needs no gradient."""
    seen, dtype = look("grad_weight", shape, x), values.dtype
    call: GradWeightCall | None = patterns.call(held.found, seen, x, grad)
    if call is None:
        out = grad_weight_result(x, grad, *held.indices, shape, dtype)
        if (preparer := _preparer(out)) is not None:
            call = preparer.prepare_grad_weight(seen, x, grad, dtype, held.indices, shape)
    if call is not None:
        return call.into(torch.empty_like(values), x, grad)
    backend: dispatch.Backend = cpu if out.is_cpu else dispatch.gpu_backend(out.device)
    backend.sparse_conv2d_grad_weight(out, x, grad, *held.indices, shape)
    return out.view(values.shape)


def sparse_conv2d_grad_weight(
    x: Tensor,
    grad: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
    dtype: torch.dtype,
) -> Tensor:
    with exchange:
        out = grad_weight_result(x, grad, crow_indices, col_indices, shape, dtype)
        held = hold_pattern(crow_indices, col_indices)
    backend: dispatch.Backend = cpu if out.is_cpu else dispatch.gpu_backend(out.device)
    return backend.sparse_conv2d_grad_weight(out, x, grad, *held.indices, shape)


def sparse_conv2d_grad_bias(grad: Tensor, dtype: torch.dtype) -> Tensor:
    out = grad_bias_result(grad, dtype)
    if out.is_cpu:
        return cpu.sparse_conv2d_grad_bias(out, grad)
    return dispatch.gpu_backend(out.device).sparse_conv2d_grad_bias(out, grad)
