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
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cpu_calls import Backward, Forward
from dsr_kernels.backends.held import exchange, hold, hold_pattern, hold_values
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
    with exchange:
        seen = cpu_calls.look("forward", shape, (x, values, bias, crow_indices, col_indices))
        call: Forward | None = patterns.call(crow_indices, col_indices, seen)
        if call is not None:
            values = hold_values(values)
        else:
            out = conv2d_result(x, values, bias, crow_indices, col_indices, shape)
            held = hold(values, crow_indices, col_indices)
    if call is None:
        values, pattern = held.values, held.pattern.indices
        call = cpu_calls.prepare_forward(seen, out, x, held.weight, shape, (bias,))
    if call is not None:
        out = call.empty(x.dtype)
        return call.into(out, x, values, bias)
    if out.is_cpu:
        return cpu.sparse_conv2d(out, x, values, bias, *pattern, shape)
    return dispatch.gpu_backend(out.device).sparse_conv2d(out, x, values, bias, *pattern, shape)


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
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> tuple[Tensor, Tensor]:
    """(gx, gvalues of values' shape): on a CPU in one pass over what both read."""
    with exchange:
        seen = cpu_calls.look("backward", shape, (x, grad, values, crow_indices, col_indices))
        call: Backward | None = patterns.call(crow_indices, col_indices, seen)
        if call is not None:
            values = hold_values(values)
        else:
            pattern, size, last = (crow_indices, col_indices), x.shape[1:], channels_last(x)
            out = grad_input_result(grad, values, *pattern, size, shape, last)
            grad_weight_result(x, grad, *pattern, shape, values.dtype)
            held = hold(values, *pattern)
    if call is None:
        values, pattern = held.values, held.pattern.indices
        call = cpu_calls.prepare_backward(seen, out, grad, x, held.weight, shape)
    if call is None:
        gx = sparse_conv2d_grad_input(grad, values, *pattern, size, shape, last)
        gvalues = sparse_conv2d_grad_weight(x, grad, *pattern, shape, values.dtype)
        return gx, gvalues.view(values.shape)
    gx = call.empty(grad.dtype)
    gvalues = torch.empty_like(values)
    call.into(gx, gvalues, grad, values, x)
    return gx, gvalues


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
