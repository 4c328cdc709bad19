"""The CPU's native calls of fused convolutions: see backends.fused for what they compute.

What the kernels read beside an operand or write beside a result has the memory format of that one;
whatever comes in another format is copied.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels.backends import cpu
from dsr_kernels.backends.address import address
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.fused import Affine, Epilogue, InputGrad, Prologue, StatisticsGrad
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns

_Numbers = tuple[int, int, int]  # addresses of center, scale and shift; 0: absent
_Finish = tuple[_Numbers, bool, int, int, tuple[int, int]]
_Operand = tuple[tuple[int, bool, tuple[int, ...]], _Numbers, bool, int]
NO_NUMBERS: _Numbers = (0, 0, 0)


def takes(activation: Tensor, values_dtype: torch.dtype) -> bool:
    """Whether the kernels compute activations of this dtype; float16 they do not."""
    return activation.dtype == values_dtype or activation.dtype == torch.bfloat16


def sparse_conv2d_fused(
    out: Tensor,  # [N, O, P, Q]
    x: Tensor,  # [N, C, H, W]
    prologue: Prologue,
    values: Tensor,  # [nnz, 1] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,
    col_indices: Tensor,
    epilogue: Epilogue,
    shape: ConvShape,
) -> Tensor:
    """out = relu(conv2d(pad(z), W) * scale + bias + residual), and its moments."""
    dtype, n = values.dtype, x.shape[0]
    g = cpu.geometry(x, out, x.shape[1:], out.shape[1:], shape, dtype)
    plan = patterns.plan(crow_indices, col_indices, g, cpu.build_plan)
    values, kept = values.contiguous(), _Kept()
    bias_at = 0 if bias is None else kept.address(bias.contiguous())
    scale_at = 0 if epilogue.scale is None else kept.address(epilogue.scale.contiguous())
    sums = epilogue.statistics is not None
    mean, variance = epilogue.statistics or (None, None)
    finish = (
        (0, scale_at, bias_at if scale_at else 0),
        epilogue.relu,
        kept.beside(out, epilogue.residual),
        0,
        (kept.address(mean), kept.address(variance)),
    )
    threads = torch.get_num_threads()
    scratch = cpu.scratch(plan.workspace_bytes("forward", n, threads, sums))
    _C.sparse_conv2d_fused(
        plan,
        n,
        kept.activated(x, g, prologue),
        address(values),
        0 if scale_at else bias_at,
        cpu.activation(out, g),
        finish,
        threads,
        address(scratch),
    )
    return out


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
    g = cpu.geometry(grad, out, out.shape[1:], grad.shape[1:], shape, dtype, transposed=True)
    plan = patterns.plan(crow_indices, col_indices, g, cpu.build_plan)
    threads, sums = torch.get_num_threads(), store.sums is not None
    workspace = cpu.scratch(plan.workspace_bytes("grad_input", n, threads, sums))
    _C.sparse_conv2d_fused(
        plan,
        n,
        kept.with_statistics(grad, g, y, by_statistics),
        kept.address(values.contiguous()),
        0,
        cpu.activation(out, g),
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
    dtype, n, kept, x = values.dtype, grad.shape[0], _Kept(), store.x
    grad, y = _like(grad, by_statistics)
    sizes = out.shape[1:], grad.shape[1:]
    g = cpu.geometry(grad, out, *sizes, shape, dtype, transposed=True)
    forward_g = cpu.geometry(x, grad, *sizes, shape, dtype)
    plan = patterns.plan(crow_indices, col_indices, g, cpu.build_plan)
    forward = patterns.plan(crow_indices, col_indices, forward_g, cpu.build_plan)
    threads, sums = torch.get_num_threads(), store.sums is not None
    bytes_of_both = plan.workspace_bytes("grad_input", n, threads, sums)
    bytes_of_both += forward.workspace_bytes("grad_weight", n, threads)
    workspace = cpu.scratch(bytes_of_both)
    _C.sparse_conv2d_fused_backward(
        plan,
        forward,
        n,
        kept.with_statistics(grad, g, y, by_statistics),
        kept.address(values.contiguous()),
        cpu.activation(out, g),
        kept.input_grad(out, store),
        kept.activated(x, forward_g, store.prologue),
        address(out_values),
        threads,
        address(workspace),
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
    g = cpu.geometry(x, grad, x.shape[1:], grad.shape[1:], shape, dtype)
    plan = patterns.plan(crow_indices, col_indices, g, cpu.build_plan)
    threads = torch.get_num_threads()
    scratch = cpu.scratch(plan.workspace_bytes("grad_weight", n, threads))
    _C.sparse_conv2d_fused_grad_weight(
        plan,
        n,
        kept.activated(x, g, prologue),
        kept.with_statistics(grad, g, y, by_statistics),
        address(out),
        threads,
        address(scratch),
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

    def activated(self, x: Tensor, g: cpu.Geometry, prologue: Prologue) -> _Operand:
        return cpu.activation(x, g), self.numbers(prologue.affine), prologue.relu, 0

    def input_grad(self, out: Tensor, store: InputGrad) -> _Finish:
        by, relu = store.prologue
        changes = by is not None or relu or store.passed is not None
        gscale, gshift = store.sums or (None, None)
        return (
            self.numbers(by),
            relu,
            self.beside(out, store.passed),
            self.beside(out, store.x) if changes else 0,
            (self.address(gshift), self.address(gscale)),
        )

    def with_statistics(
        self, grad: Tensor, g: cpu.Geometry, y: Tensor | None, by: StatisticsGrad | None
    ) -> _Operand:
        numbers = NO_NUMBERS if by is None else self.numbers(by.affine)
        return cpu.activation(grad, g), numbers, False, self.address(y)


def _like(grad: Tensor, by: StatisticsGrad | None) -> tuple[Tensor, Tensor | None]:
    """The gradient in the memory format of y, and y: the kernels read both with one set of strides.

    A y that overlaps itself is made dense.
    """
    if by is None:
        return grad, None
    if _same_strides(grad, by.y):
        return grad, by.y
    y = by.y if by.y.is_contiguous() else by.y.contiguous(memory_format=_format_of(by.y))
    return _in_format_of(y, grad), y


def _in_format_of(result: Tensor, tensor: Tensor) -> Tensor:
    if _same_strides(result, tensor):
        return tensor
    return torch.empty_like(result, dtype=tensor.dtype).copy_(tensor)


def _format_of(tensor: Tensor) -> torch.memory_format:
    last = tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _same_strides(a: Tensor, b: Tensor) -> bool:
    return all(
        size == 1 or one == other
        for size, one, other in zip(a.shape, a.stride(), b.stride(), strict=True)
    )
