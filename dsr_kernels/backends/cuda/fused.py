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
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import call, lists
from dsr_kernels.backends.cuda.passes import forward_shape, grad_input_shape
from dsr_kernels.backends.cuda.prepare import DirectPass, GatherPass
from dsr_kernels.backends.cuda.tiling import COMPUTE_WARPS
from dsr_kernels.backends.cuda.window_gather import WindowGatherPass
from dsr_kernels.backends.cuda.window_grad_weight import WindowGradWeightPass
from dsr_kernels.backends.fused import Affine, Epilogue, InputGrad, Prologue, StatisticsGrad
from dsr_kernels.backends.patterns import patterns


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
    prepared = call.gather_pass(
        forward_shape,
        tuple(x.shape),
        tuple(out.shape),
        shape,
        call.density_of(values.numel(), shape),
        block_size_of(crow_indices, shape.weight_shape[0]),
        x.dtype,
        x.stride(),
        out.stride(),
        call.device_of(x),
        call.tf32_of(x, shape),
    )
    if isinstance(prepared, DirectPass):
        return None
    source = _SourceMap(None, _contiguous(prologue.affine), prologue.relu)
    dest = _DestMap(
        None,
        None if epilogue.scale is None else Affine(*[epilogue.scale.contiguous()] * 3),
        epilogue.relu,
        _laid_out(epilogue.residual, out),
        epilogue.statistics,
    )
    weight = values.contiguous(), bias, crow_indices, col_indices
    return _gather(out, x, weight, source, dest, prepared)


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
    prepared = call.gather_pass(
        grad_input_shape,
        tuple(out.shape),
        tuple(grad.shape),
        shape,
        call.density_of(values.numel(), shape),
        block_size_of(crow_indices, shape.weight_shape[0]),
        grad.dtype,
        grad.stride(),
        out.stride(),
        call.device_of(grad),
        call.tf32_of(grad, shape),
    )
    if isinstance(prepared, DirectPass):
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
    return _gather(out, grad, weight, source, dest, prepared)


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
    prepared = call.grad_weight_pass(
        tuple(x.shape),
        tuple(grad.shape),
        shape,
        call.density_of(out.numel(), shape),
        block_size_of(crow_indices, shape.weight_shape[0]),
        x.dtype,
        x.stride(),
        grad.stride(),
        call.device_of(x),
        call.tf32_of(x, shape),
    )
    if isinstance(prepared, DirectPass):
        return None
    of_x = _SourceMap(None, _contiguous(prologue.affine), prologue.relu)
    of_grad = _SourceMap(y, by_statistics and _contiguous(by_statistics.affine), False)
    if isinstance(prepared, WindowGradWeightPass):
        maps = of_x.native(), of_grad.native()
        call.grad_weight_by_windows(out, x, grad, crow_indices, col_indices, prepared, maps)
        return call.clear_unmet(out, crow_indices, col_indices, prepared)
    plan = patterns.plan(crow_indices, col_indices, prepared.key, lists.build_list)
    plan.wait()
    partial = torch.empty(prepared.splits, plan.entries, dtype=torch.float32, device=x.device)
    native._cuda.fused_grad_weight(
        call.queue_of(x),
        prepared.launch,
        plan.entries,
        prepared.dtype,
        address(x),
        address(grad),
        address(plan.offsets),
        address(plan.value_index),
        address(plan.bounds),
        address(partial),
        address(out),
        of_x.native(),
        of_grad.native(),
    )
    return call.clear_unmet(out, crow_indices, col_indices, prepared)


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

    def native(self, partial: Tensor | None, parts: int, first: int) -> native._cuda._DestMap:
        places = _address(self.added), _address(partial), parts, first
        return _address(self.input), _addresses(self.affine), self.relu, *places


def _gather(
    dest: Tensor,
    source: Tensor,
    weight: call.Weight,
    source_map: _SourceMap,
    dest_map: _DestMap,
    prepared: GatherPass | WindowGatherPass,
) -> Tensor:
    values, bias, crow_indices, col_indices = weight
    bias = None if bias is None else bias.contiguous()
    # A warp of a tile leaves a part of every channel that it stores.
    counts = [one.tiles * (COMPUTE_WARPS // one.row_warps) for one in prepared.launches]
    parts, moments, partial = sum(counts), dest_map.input is None, None
    if dest_map.combined is not None:
        numbers = 3 if moments else 2
        partial = torch.empty(
            numbers, dest.shape[1], parts, dtype=torch.float32, device=dest.device
        )

    def maps_of(launch: int) -> call.Maps:
        return source_map.native(), dest_map.native(partial, parts, sum(counts[:launch]))

    weight = values, bias, crow_indices, col_indices
    call.gather(dest, source, weight, prepared, maps_of)
    if dest_map.combined is not None and partial is not None:
        to = address(dest_map.combined[0]), address(dest_map.combined[1])
        queue = call.queue_of(source)
        native._cuda.combine_parts(queue, moments, dest.shape[1], parts, address(partial), *to)
    return dest


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
