"""The CPU's native calls of fused convolutions: see backends.fused for what they compute.

What the kernels read beside an operand or write beside a result has the memory format of that one;
whatever comes in another format is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels.backends.address import address
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cpu_calls import Backward, Forward, is_native, same_strides
from dsr_kernels.backends.cpu_plans import Geometry, activation, build_plan, geometry, scratch
from dsr_kernels.backends.fused import Affine, Epilogue, InputGrad, Prologue, StatisticsGrad
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns

_Numbers = tuple[int, int, int]  # addresses of center, scale and shift; 0: absent
NO_NUMBERS: _Numbers = (0, 0, 0)
_Finish = tuple[_Numbers, bool, int, int, tuple[int, int]]
_Operand = tuple[tuple[int, bool, tuple[int, ...]], _Numbers, bool, int]


def takes(activation: Tensor, values_dtype: torch.dtype) -> bool:
    """Whether the kernels compute activations of this dtype; float16 they do not."""
    return is_native(activation, values_dtype)


def sparse_conv2d_fused(
    out: Tensor,  # [N, O, P, Q]
    x: Tensor,  # [N, C, H, W]
    prologue: Prologue,
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,
    col_indices: Tensor,
    epilogue: Epilogue,
    shape: ConvShape,
) -> Tensor:
    """out = relu(conv2d(pad(z), W) * scale + bias + residual), and its moments."""
    residual = None if epilogue.residual is None else _in_format_of(out, epilogue.residual)
    values = values.contiguous()
    call = Forward(
        out, x, values, crow_indices, col_indices, shape, epilogue.statistics is not None
    )
    return call.into(
        out,
        x,
        values,
        _contiguous(bias),
        _numbers(prologue.affine),
        prologue.relu,
        residual,
        epilogue.statistics,
        _contiguous(epilogue.scale),
        epilogue.relu,
    )


def sparse_conv2d_fused_grad_input(
    out: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    by_statistics: StatisticsGrad | None,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    store: InputGrad,
    shape: ConvShape,
) -> Tensor:
    """out = the gradient of x, and the sums that are the gradients of scale and shift."""
    dtype, n, kept = values.dtype, grad.shape[0], _Kept()
    grad, y = _like(grad, by_statistics)
    size = block_size_of(crow_indices, shape.rows)
    g = geometry(grad, out, out.shape[1:], grad.shape[1:], shape, dtype, True, size)
    plan = patterns.plan(crow_indices, col_indices, g, build_plan)
    threads, sums = torch.get_num_threads(), store.sums is not None
    workspace = scratch(plan.workspace_bytes("grad_input", n, threads, sums))
    _C.sparse_conv2d_fused(
        plan,
        n,
        kept.with_statistics(grad, g, y, by_statistics),
        kept.address(values.contiguous()),
        0,
        activation(out, g),
        kept.input_grad(out, store),
        threads,
        address(workspace),
    )
    return out


def sparse_conv2d_fused_backward(
    out: Tensor,  # [N, C, H, W]
    out_values: Tensor,  # [nnz]
    grad: Tensor,  # [N, O, P, Q]
    by_statistics: StatisticsGrad | None,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    store: InputGrad,
    shape: ConvShape,
) -> None:
    """out and out_values = the gradients of x and of the values, which share what they read."""
    grad, y = _like(grad, by_statistics)
    values, x, passed = values.contiguous(), store.x, store.passed
    beside = None if passed is None else _in_format_of(out, passed)
    if store.changes:
        x = _in_format_of(out, x)
    call = Backward(
        out, grad, x, values, crow_indices, col_indices, shape, sums=store.sums is not None
    )
    call.into(
        out,
        out_values,
        grad,
        values,
        x,
        _numbers(store.prologue.affine),
        store.prologue.relu,
        beside,
        store.sums,
        y,
        None if by_statistics is None else _numbers(by_statistics.affine),
    )


def sparse_conv2d_fused_grad_weight(
    out: Tensor,  # [nnz]
    x: Tensor,  # [N, C, H, W]
    prologue: Prologue,
    grad: Tensor,  # [N, O, P, Q]
    by_statistics: StatisticsGrad | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = the dense weight's gradient at the non-zeros, by z and g."""
    dtype, n, kept = out.dtype, x.shape[0], _Kept()
    grad, y = _like(grad, by_statistics)
    size = block_size_of(crow_indices, shape.rows)
    g = geometry(x, grad, x.shape[1:], grad.shape[1:], shape, dtype, block_size=size)
    plan = patterns.plan(crow_indices, col_indices, g, build_plan)
    threads = torch.get_num_threads()
    workspace = scratch(plan.workspace_bytes("grad_weight", n, threads))
    _C.sparse_conv2d_fused_grad_weight(
        plan,
        n,
        kept.activated(x, g, prologue),
        kept.with_statistics(grad, g, y, by_statistics),
        address(out),
        threads,
        address(workspace),
    )
    return out


class _Kept:
    """Addresses of tensors, which it keeps alive until the call is over."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def address(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        self._tensors.append(tensor)
        return address(tensor)

    def numbers(self, by: Affine | None) -> _Numbers:
        if by is None:
            return NO_NUMBERS
        center, scale, shift = (self.address(t.contiguous()) for t in by)
        return center, scale, shift

    def beside(self, result: Tensor, tensor: Tensor | None) -> int:
        """The address of `tensor` in the memory format of `result`."""
        return 0 if tensor is None else self.address(_in_format_of(result, tensor))

    def activated(self, x: Tensor, g: Geometry, prologue: Prologue) -> _Operand:
        return activation(x, g), self.numbers(prologue.affine), prologue.relu, 0

    def input_grad(self, out: Tensor, store: InputGrad) -> _Finish:
        by, relu = store.prologue
        gscale, gshift = store.sums or (None, None)
        return (
            self.numbers(by),
            relu,
            self.beside(out, store.passed),
            self.beside(out, store.x) if store.changes else 0,
            (self.address(gshift), self.address(gscale)),
        )

    def with_statistics(
        self, grad: Tensor, g: Geometry, y: Tensor | None, by: StatisticsGrad | None
    ) -> _Operand:
        numbers = NO_NUMBERS if by is None else self.numbers(by.affine)
        return activation(grad, g), numbers, False, self.address(y)


def _like(grad: Tensor, by: StatisticsGrad | None) -> tuple[Tensor, Tensor | None]:
    """The gradient in the memory format of y, and y: the kernels read both with one set of strides.

    A y that overlaps itself is made dense.
    """
    if by is None:
        return grad, None
    if same_strides(grad, by.y):
        return grad, by.y
    y = by.y if by.y.is_contiguous() else by.y.contiguous(memory_format=_format_of(by.y))
    return _in_format_of(y, grad), y


def _contiguous(numbers: Tensor | None) -> Tensor | None:
    return None if numbers is None else numbers.contiguous()


def _numbers(by: Affine | None) -> Affine | None:
    return None if by is None else Affine(*(t.contiguous() for t in by))


def _in_format_of(result: Tensor, tensor: Tensor) -> Tensor:
    if same_strides(result, tensor):
        return tensor
    address(tensor)  # before it is copied
    return torch.empty_like(result, dtype=tensor.dtype).copy_(tensor)


def _format_of(tensor: Tensor) -> torch.memory_format:
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
