"""Convolutions that take batch norm, ReLU and additions in: the slab kernels, with maps.

As backends.dispatch.FusedBackend. What the slab kernels do not take is left to plain operations:
float64, tensors of several types, passes of the direct kernels, and empty ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends import native
from dsr_kernels.backends.address import address
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import call
from dsr_kernels.backends.fused import Affine, Epilogue, InputGrad, Prologue, StatisticsGrad


def takes(activation: Tensor, values_dtype: torch.dtype) -> bool:
    """Whether there are slab kernels of these types."""
    return activation.dtype.itemsize <= 4 and values_dtype == torch.float32


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
) -> Tensor | None:
    """out = relu(conv2d(pad(z), W) * scale + bias + residual); fills its statistics, too."""
    if not out.numel() or not _alike(values, x, out):
        return None
    x, shape = call.subsampled(x, out.shape[2:], shape)
    plan = call.plan_for("forward", x, out, values.numel(), crow_indices, shape)
    if plan.kind == "direct":
        return None
    source = _SourceMap(None, _contiguous(prologue.affine), prologue.relu)
    dest = _DestMap(
        None,
        None if epilogue.scale is None else Affine(*[epilogue.scale.contiguous()] * 3),
        epilogue.relu,
        _laid_out(epilogue.residual, out),
        epilogue.statistics,
    )
    bias = None if bias is None else bias.contiguous()
    weight = values.contiguous(), bias, crow_indices, col_indices
    call.gather(out, x, weight, plan, (source.native(), dest.native()))
    return out


def sparse_conv2d_fused_grad_input(
    out: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    by_statistics: StatisticsGrad | None,
    values: Tensor,  # [blocks, block_size] or [nnz]
    crow_indices: Tensor,
    col_indices: Tensor,
    store: InputGrad,
    shape: ConvShape,
) -> Tensor | None:
    """out = the gradient of x; fills the sums of `store`, too."""
    if not out.numel() or not grad.numel() or not _alike(values, grad, out):
        return None
    grad, y = _beside(grad, by_statistics)
    plan = call.plan_for("grad_input", out, grad, values.numel(), crow_indices, shape)
    if plan.kind == "direct":
        return None
    source = _SourceMap(y, by_statistics and _contiguous(by_statistics.affine), False)
    affine, relu = store.prologue
    active = affine is not None or relu
    dest = _DestMap(
        _laid_out(store.x, out) if active else None,
        _contiguous(affine),
        relu,
        _laid_out(store.passed, out),
        store.sums,
    )
    weight = values.contiguous(), None, crow_indices, col_indices
    call.gather(out, grad, weight, plan, (source.native(), dest.native()))
    return out


def sparse_conv2d_fused_grad_weight(
    out: Tensor,  # [nnz]
    x: Tensor,  # [N, C, H, W]
    prologue: Prologue,
    grad: Tensor,  # [N, O, P, Q]
    by_statistics: StatisticsGrad | None,
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor | None:
    """out = the dense weight's gradient at the non-zeros, by z and g (see backends.fused)."""
    if not grad.numel() or not _alike(out, x, grad):
        return None
    x, shape = call.subsampled(x, grad.shape[2:], shape)
    grad, y = _beside(grad, by_statistics)
    plan = call.plan_for("grad_weight", x, grad, out.numel(), crow_indices, shape)
    if plan.kind == "direct":
        return None
    of_x = _SourceMap(None, _contiguous(prologue.affine), prologue.relu)
    of_grad = _SourceMap(y, by_statistics and _contiguous(by_statistics.affine), False)
    maps = of_x.native(), of_grad.native()
    return call.grad_weight(out, x, grad, (crow_indices, col_indices), plan, maps)


class _SourceMap(NamedTuple):
    """csrc/cuda/conv/fused.h: SourceMap. Holds what it has the addresses of."""

    beside: Tensor | None
    affine: Affine | None
    relu: bool

    def native(self) -> native._cuda._SourceMap:
        return _address(self.beside), _addresses(self.affine), self.relu


class _DestMap(NamedTuple):
    """csrc/cuda/conv/fused.h: DestMap, and where to its parts are to be combined."""

    input: Tensor | None
    affine: Affine | None
    relu: bool
    added: Tensor | None
    combined: tuple[Tensor, Tensor] | None  # mean and variance, or two sums [channels]

    def native(self) -> native._cuda._DestMap:
        combined = (0, 0)
        if self.combined is not None:
            combined = address(self.combined[0]), address(self.combined[1])
        given = _address(self.input), _addresses(self.affine)
        return *given, self.relu, _address(self.added), combined


def _alike(values: Tensor, source: Tensor, other: Tensor) -> bool:
    return takes(source, values.dtype) and source.dtype == other.dtype


def _beside(grad: Tensor, by: StatisticsGrad | None) -> tuple[Tensor, Tensor | None]:
    """grad and y, in the same strides."""
    if by is None or by.y.stride() == grad.stride():
        return grad, None if by is None else by.y
    grad = torch.empty_like(by.y).copy_(grad)  # y's strides, unless they leave gaps
    return grad, _laid_out(by.y, grad)


def _laid_out(tensor: Tensor | None, like: Tensor) -> Tensor | None:
    """The same numbers in the strides of `like`."""
    if tensor is None or tensor.stride() == like.stride():
        return tensor
    return torch.empty_like(like).copy_(tensor)


def _contiguous(affine: Affine | None) -> Affine | None:
    return affine and Affine(*(numbers.contiguous() for numbers in affine))


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else address(tensor)


def _addresses(affine: Affine | None) -> tuple[int, int, int]:
    if affine is None:
        return 0, 0, 0
    return address(affine.center), address(affine.scale), address(affine.shift)
