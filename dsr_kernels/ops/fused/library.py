"""The fused operations: schemas and kernels. `results` checks every argument.

    sparse_conv2d_fused              y = conv2d(z, W) + bias + residual, and y's mean and variance
    sparse_conv2d_fused_grad_input   gx, and the gradients of scale and shift
    sparse_conv2d_fused_grad_weight  gvalues [nnz]
    sparse_conv2d_folded             y = relu(conv2d(z, W) * scale + shift + residual), no gradient

with z = relu((x - center) * scale + shift); `composed` holds their meaning. `relu` is a flag, and
center, scale and shift [C] are absent together. Activations and values are as in ops.library; the
numbers of channels have the values' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels.backends import cpu_calls, cpu_fused, dispatch, live_taps
from dsr_kernels.backends.calls import look
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cpu_calls import Backward, Forward
from dsr_kernels.backends.fused import Epilogue, InputGrad, Prologue, StatisticsGrad, flat
from dsr_kernels.backends.held import exchange, hold, hold_pattern, take_values
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.ops import library
from dsr_kernels.ops.fused import composed
from dsr_kernels.ops.fused.results import (
    folded_result,
    fused_grad_input_result,
    fused_grad_weight_result,
    fused_result,
)

_SHAPE, _PATTERN = library.SHAPE_SCHEMA, library.PATTERN_SCHEMA
_PROLOGUE = "Tensor x, Tensor? center, Tensor? scale, Tensor? shift, bool relu"
_GRAD = "Tensor grad, Tensor? y, Tensor? y_center, Tensor? y_scale, Tensor? y_shift"

for _schema in (
    f"sparse_conv2d_fused({_PROLOGUE}, Tensor values, Tensor? bias, {_PATTERN}, Tensor? residual,"
    f" bool statistics, {_SHAPE}) -> (Tensor, Tensor, Tensor)",
    f"sparse_conv2d_fused_grad_input({_GRAD}, Tensor values, {_PATTERN}, {_PROLOGUE},"
    f" Tensor? passed, {_SHAPE}) -> (Tensor, Tensor, Tensor)",
    f"sparse_conv2d_fused_grad_weight({_PROLOGUE}, {_GRAD}, {_PATTERN}, {_SHAPE},"
    " ScalarType dtype) -> Tensor",
    f"sparse_conv2d_folded({_PROLOGUE}, Tensor values, {_PATTERN}, Tensor out_scale,"
    f" Tensor out_shift, Tensor? residual, bool out_relu, {_SHAPE}) -> Tensor",
):
    library.NAMESPACE.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


# --- kernels: results, filled by the backend of their device --------------------------------------


def _backend(x: Tensor, y: Tensor, values: Tensor, shape: ConvShape) -> dispatch.FusedBackend:
    """`composed` where there is no fused kernel, where taps meet nothing but padding, and for empty
    batches, whose sums no kernel would fill.
    """
    backend = dispatch.fused_backend(x.device)
    if backend is None or not x.numel() or not all(backend.takes(t, values.dtype) for t in (x, y)):
        return composed
    sizes = x.shape[2:], y.shape[2:]
    if any(live_taps.parts_of(*sizes, shape, transposed) for transposed in (False, True)):
        return composed
    return backend


def sparse_conv2d_fused(
    x: Tensor,
    prologue: Prologue,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    residual: Tensor | None,
    statistics: bool,
    shape: ConvShape,
) -> tuple[Tensor, Tensor, Tensor]:
    by, relu = prologue
    numbers, pattern = (*flat(by), bias), (crow_indices, col_indices)
    kind = "fused, statistics" if statistics else "fused"
    seen, tensors = look(kind, shape, x), (x, *numbers, residual, values)
    with exchange:
        found = patterns.known(*pattern)
        call: Forward | None = patterns.call(found, seen, *tensors)
        if call is not None:
            values = take_values(values)
        else:
            weight = values, bias, *pattern
            out, mean, variance = fused_result(x, prologue, *weight, residual, statistics, shape)
            held = hold(values, *pattern)
    if call is None:
        values, pattern = held.values, held.pattern.indices
        call = cpu_calls.prepare_forward(
            seen, tensors, out, x, held.weight, shape, numbers, residual, statistics
        )
    if call is not None:
        out = call.empty(x.dtype, kept=statistics or x.requires_grad)  # of a training step
        mean, variance = (values.new_empty(call.channels) for _ in range(2))
        moments = (mean, variance) if statistics else None
        call.into(out, x, values, bias, by, relu, residual, moments)
        return out, mean, variance
    epilogue = Epilogue(residual=residual, statistics=(mean, variance) if statistics else None)
    _forward(out, x, prologue, values, bias, *pattern, epilogue, shape)
    return out, mean, variance


def _forward(
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
    call = out, x, prologue, values, bias, crow_indices, col_indices, epilogue, shape
    if _backend(x, out, values, shape).sparse_conv2d_fused(*call) is None:
        composed.sparse_conv2d_fused(*call)
    return out


def sparse_conv2d_fused_grad_input(
    grad: Tensor,
    by_statistics: StatisticsGrad | None,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    x: Tensor,
    prologue: Prologue,
    passed: Tensor | None,
    shape: ConvShape,
) -> tuple[Tensor, Tensor, Tensor]:
    weight = values, crow_indices, col_indices
    with exchange:
        out, gscale, gshift = fused_grad_input_result(
            grad, by_statistics, *weight, x, prologue, passed, shape
        )
        held = hold(*weight)
    weight = held.weight
    sums = None if prologue.affine is None else (gscale, gshift)
    call = out, grad, by_statistics, *weight, InputGrad(x, prologue, passed, sums), shape
    if _backend(out, grad, values, shape).sparse_conv2d_fused_grad_input(*call) is None:
        composed.sparse_conv2d_fused_grad_input(*call)
    return out, gscale, gshift


def sparse_conv2d_fused_backward(
    grad: Tensor,
    by_statistics: StatisticsGrad | None,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    x: Tensor,
    prologue: Prologue,
    passed: Tensor | None,
    shape: ConvShape,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(gx, gscale, gshift, gvalues of values' shape): on a CPU in one pass over what both read."""
    weight, (by, relu) = (values, crow_indices, col_indices), prologue
    y, y_by = (None, None) if by_statistics is None else by_statistics
    numbers = *flat(by), *flat(y_by)
    seen = look("fused backward", shape, x)
    tensors = x, *numbers, passed, grad, y, values
    with exchange:
        found = patterns.known(crow_indices, col_indices)
        call: Backward | None = patterns.call(found, seen, *tensors)
        if call is not None:
            values = take_values(values)
        else:
            gx, gscale, gshift = fused_grad_input_result(
                grad, by_statistics, *weight, x, prologue, passed, shape
            )
            held = hold(*weight)
    if call is None:
        values, *_ = weight = held.weight
        call = cpu_calls.prepare_backward(
            seen, tensors, gx, grad, x, weight, shape, numbers, passed, y, by is not None
        )
    if call is not None:
        gx = call.empty(x.dtype, kept=True)
        gscale, gshift = (values.new_empty(call.channels) for _ in range(2))
        gvalues = torch.empty_like(values)
        sums = None if by is None else (gscale, gshift)
        call.into(gx, gvalues, grad, values, x, by, relu, passed, sums, y, y_by)
        return gx, gscale, gshift, gvalues
    if _backend(x, grad, values, shape) is not cpu_fused:
        gx, gscale, gshift = sparse_conv2d_fused_grad_input(
            grad, by_statistics, *weight, x, prologue, passed, shape
        )
        operands = x, prologue, grad, by_statistics
        gvalues = sparse_conv2d_fused_grad_weight(*operands, *weight[1:], shape, values.dtype)
        return gx, gscale, gshift, gvalues.view(values.shape)
    gvalues = values.new_empty(values.shape)
    sums = None if prologue.affine is None else (gscale, gshift)
    store = InputGrad(x, prologue, passed, sums)
    cpu_fused.sparse_conv2d_fused_backward(gx, gvalues, grad, by_statistics, *weight, store, shape)
    return gx, gscale, gshift, gvalues


def sparse_conv2d_fused_grad_weight(
    x: Tensor,
    prologue: Prologue,
    grad: Tensor,
    by_statistics: StatisticsGrad | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
    dtype: torch.dtype,
) -> Tensor:
    operands, pattern = (x, prologue, grad, by_statistics), (crow_indices, col_indices)
    with exchange:
        out = fused_grad_weight_result(*operands, *pattern, shape, dtype)
        held = hold_pattern(*pattern)
    call = out, *operands, *held.indices, shape
    if _backend(x, grad, out, shape).sparse_conv2d_fused_grad_weight(*call) is None:
        composed.sparse_conv2d_fused_grad_weight(*call)
    return out


def sparse_conv2d_folded(
    x: Tensor,
    prologue: Prologue,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    out_scale: Tensor,
    out_shift: Tensor,
    residual: Tensor | None,
    out_relu: bool,
    shape: ConvShape,
) -> Tensor:
    pattern, (by, relu) = (crow_indices, col_indices), prologue
    numbers = *flat(by), out_scale, out_shift
    seen, tensors = look("folded", shape, x), (x, *numbers, residual, values)
    with exchange:
        found = patterns.known(*pattern)
        call: Forward | None = patterns.call(found, seen, *tensors)
        if call is not None:
            values = take_values(values)
        else:
            out = folded_result(
                x, prologue, values, *pattern, out_scale, out_shift, residual, out_relu, shape
            )
            held = hold(values, *pattern)
    if call is None:
        values, pattern = held.values, held.pattern.indices
        call = cpu_calls.prepare_forward(
            seen, tensors, out, x, held.weight, shape, numbers, residual
        )
    if call is not None:
        out = call.empty(x.dtype)
        way_out = residual, None, out_scale, out_relu
        return call.into(out, x, values, out_shift, by, relu, *way_out)
    epilogue = Epilogue(scale=out_scale, residual=residual, relu=out_relu)
    return _forward(out, x, prologue, values, out_shift, *pattern, epilogue, shape)
