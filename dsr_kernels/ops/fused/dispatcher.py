"""The fused operations as torch's dispatcher calls them: see ops.dispatcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dsr_kernels.backends.conv_shape import ConvShape, conv_shape
from dsr_kernels.backends.fused import Prologue, flat
from dsr_kernels.ops.autograd import is_recorded
from dsr_kernels.ops.dispatcher import refuse_functorch, refuse_unsupported, register
from dsr_kernels.ops.fused import autograd, library, results
from dsr_kernels.ops.fused.results import affine_of, statistics_grad

Triple = tuple[Tensor, Tensor, Tensor]
MaybeTensor = Tensor | None


def _flat_fused(op: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        x: Tensor,
        center: MaybeTensor,
        scale: MaybeTensor,
        shift: MaybeTensor,
        relu: bool,
        values: Tensor,
        bias: MaybeTensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        residual: MaybeTensor,
        statistics: bool,
        *fields: Any,
    ) -> Triple:
        prologue = Prologue(affine_of(center, scale, shift), relu)
        weight = values, bias, crow_indices, col_indices
        return op(x, prologue, *weight, residual, statistics, conv_shape(*fields))

    return call


def _flat_grad_input(op: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        grad: Tensor,
        y: MaybeTensor,
        y_center: MaybeTensor,
        y_scale: MaybeTensor,
        y_shift: MaybeTensor,
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        x: Tensor,
        center: MaybeTensor,
        scale: MaybeTensor,
        shift: MaybeTensor,
        relu: bool,
        passed: MaybeTensor,
        *fields: Any,
    ) -> Triple:
        by_statistics = statistics_grad(y, y_center, y_scale, y_shift)
        prologue = Prologue(affine_of(center, scale, shift), relu)
        weight = values, crow_indices, col_indices
        return op(grad, by_statistics, *weight, x, prologue, passed, conv_shape(*fields))

    return call


def _flat_grad_weight(op: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        x: Tensor,
        center: MaybeTensor,
        scale: MaybeTensor,
        shift: MaybeTensor,
        relu: bool,
        grad: Tensor,
        y: MaybeTensor,
        y_center: MaybeTensor,
        y_scale: MaybeTensor,
        y_shift: MaybeTensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        weight_shape: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        dtype: torch.dtype,
    ) -> Tensor:
        prologue = Prologue(affine_of(center, scale, shift), relu)
        by_statistics = statistics_grad(y, y_center, y_scale, y_shift)
        shape = conv_shape(weight_shape, stride, padding, dilation, groups)
        return op(x, prologue, grad, by_statistics, crow_indices, col_indices, shape, dtype)

    return call


def _flat_folded(op: Callable[..., Any]) -> Callable[..., Any]:
    def call(
        x: Tensor,
        center: MaybeTensor,
        scale: MaybeTensor,
        shift: MaybeTensor,
        relu: bool,
        values: Tensor,
        crow_indices: Tensor,
        col_indices: Tensor,
        out_scale: Tensor,
        out_shift: Tensor,
        residual: MaybeTensor,
        out_relu: bool,
        *fields: Any,
    ) -> Tensor:
        prologue = Prologue(affine_of(center, scale, shift), relu)
        weight, out = (values, crow_indices, col_indices), (out_scale, out_shift)
        return op(x, prologue, *weight, *out, residual, out_relu, conv_shape(*fields))

    return call


# --- at the Autograd key --------------------------------------------------------------------------


def _recorded_fused(
    x: Tensor,
    prologue: Prologue,
    values: Tensor,
    bias: MaybeTensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    residual: MaybeTensor,
    statistics: bool,
    shape: ConvShape,
) -> Triple:
    numbers = (*flat(prologue.affine), prologue.relu)
    weight = values, bias, crow_indices, col_indices
    tensors = tuple(t for t in (x, *flat(prologue.affine), *weight, residual) if t is not None)
    refuse_unsupported(tensors)
    if is_recorded(tensors):
        refuse_functorch()
        return autograd.SparseConvFused.apply(
            _below, x, *numbers, *weight, residual, statistics, shape
        )[:3]
    return _below(x, prologue, *weight, residual, statistics, shape)


def _below(
    x: Tensor,
    prologue: Prologue,
    values: Tensor,
    bias: MaybeTensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    residual: MaybeTensor,
    statistics: bool,
    shape: ConvShape,
) -> Triple:
    numbers = (*flat(prologue.affine), prologue.relu)
    weight = values, bias, crow_indices, col_indices
    with torch._C._AutoDispatchBelowAutograd():
        return autograd.OPS.sparse_conv2d_fused.default(
            x, *numbers, *weight, residual, statistics, *shape
        )


def _without_derivative(name: str) -> Callable[..., Any]:
    overload = getattr(torch.ops.dsr_kernels, name).default

    def call(*args: Any) -> Any:
        tensors = tuple(a for a in args if isinstance(a, Tensor))
        refuse_unsupported(tensors)
        if is_recorded(tensors):
            raise RuntimeError(f"{name}: has no derivative; call sparse_conv2d_fused")
        with torch._C._AutoDispatchBelowAutograd():
            return overload(*args)

    return call


# --- registration ---------------------------------------------------------------------------------


for _name, _flat, _kernel, _fake in (
    (
        "sparse_conv2d_fused_grad_input",
        _flat_grad_input,
        library.sparse_conv2d_fused_grad_input,
        results.fused_grad_input_result,
    ),
    (
        "sparse_conv2d_fused_grad_weight",
        _flat_grad_weight,
        library.sparse_conv2d_fused_grad_weight,
        results.fused_grad_weight_result,
    ),
    (
        "sparse_conv2d_folded",
        _flat_folded,
        library.sparse_conv2d_folded,
        results.folded_result,
    ),
):
    register(_name, _flat(_kernel), _flat(_fake), _without_derivative(_name))
register(
    "sparse_conv2d_fused",
    _flat_fused(library.sparse_conv2d_fused),
    _flat_fused(results.fused_result),
    _flat_fused(_recorded_fused),
)
