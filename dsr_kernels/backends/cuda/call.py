"""What the calls of the CUDA kernels, plain and fused, look up: passes, lists, queues."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dsr_kernels.backends import native
from dsr_kernels.backends.address import address
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import (
    lists,
    tiling,
    window_costs,
    window_gather,
    window_grad_weight,
)
from dsr_kernels.backends.cuda.passes import PassShape, forward_shape
from dsr_kernels.backends.cuda.prepare import (
    DirectPass,
    GatherPass,
    GradWeightPass,
    prepare_gather,
    prepare_grad_weight,
)
from dsr_kernels.backends.cuda.window_gather import WindowGatherPass
from dsr_kernels.backends.cuda.window_grad_weight import WindowGradWeightPass
from dsr_kernels.backends.cuda.window_lists import WindowList, build_windows
from dsr_kernels.backends.devices import stream_of
from dsr_kernels.backends.patterns import patterns

Sizes = tuple[int, ...]
ShapeOf = Callable[[Sizes, Sizes, ConvShape], PassShape]
# values, bias, crow_indices, col_indices
Weight = tuple[Tensor, Tensor | None, Tensor, Tensor]
Maps = tuple["native._cuda._SourceMap", "native._cuda._DestMap"]


AnyGatherPass = GatherPass | WindowGatherPass | DirectPass
AnyGradWeightPass = GradWeightPass | WindowGradWeightPass | DirectPass


# Keyed by what a call has at hand: passes themselves are large, and slow to hash.
@functools.lru_cache(maxsize=2048)
def gather_pass(
    shape_of: ShapeOf,
    x_size: Sizes,
    y_size: Sizes,
    shape: ConvShape,
    density: float,
    block_size: int,
    dtype: torch.dtype,
    source_strides: Sizes,
    dest_strides: Sizes,
    device: tiling.Device,
    tf32: bool,
) -> AnyGatherPass:
    sizes, images = shape_of(x_size[1:], y_size[1:], shape), x_size[0]
    where = dtype, source_strides, dest_strides, device
    by_rows = prepare_gather(sizes, images, density, *where)
    if not _may_take_windows(dtype, tf32):
        return by_rows
    return window_gather.prepare_windows(
        sizes, images, density, block_size, *where, instead=by_rows
    )


@functools.lru_cache(maxsize=2048)
def grad_weight_pass(
    x_size: Sizes,
    y_size: Sizes,
    shape: ConvShape,
    density: float,
    block_size: int,
    dtype: torch.dtype,
    x_strides: Sizes,
    grad_strides: Sizes,
    device: tiling.Device,
    tf32: bool,
) -> AnyGradWeightPass:
    sizes, images = forward_shape(x_size[1:], y_size[1:], shape), x_size[0]
    where = dtype, x_strides, grad_strides, device
    by_rows = prepare_grad_weight(sizes, images, density, *where)
    if not _may_take_windows(dtype, tf32):
        return by_rows
    return window_grad_weight.prepare_windows(
        sizes, images, density, block_size, *where, instead=by_rows
    )


def _may_take_windows(dtype: torch.dtype, tf32: bool) -> bool:
    return (tf32 or dtype != torch.float32) and window_costs.wanted()


def tf32_of(x: Tensor, shape: ConvShape) -> bool:
    """Whether a call on x may round float32 to TF32: only where torch.nn's twin of the layer might.

    A pointwise convolution of images of one pixel may be a linear layer or a convolution. Nothing
    here tells which, so torch must allow both.
    """
    if x.dtype != torch.float32 or not window_costs.wanted():
        return False
    return window_costs.tf32_allowed((*shape.kernel, *x.shape[2:]) == (1, 1, 1, 1))


def gather(
    dest: Tensor,
    source: Tensor,
    weight: Weight,
    prepared: GatherPass | WindowGatherPass,
    maps_of: Callable[[int], Maps] | None = None,
) -> None:
    """The launches of a pass with slabs; `maps_of` says what is done beside in each."""
    values, bias, crow_indices, col_indices = weight
    ends = 0 if bias is None else address(bias), address(dest)
    maps = [maps_of(number) if maps_of else None for number in range(len(prepared.launches))]
    if isinstance(prepared, WindowGatherPass):
        windows = patterns.plan(crow_indices, col_indices, prepared.key, build_windows)
        windows.wait()
        listed = window_list(windows, values.numel())
        for one, beside in zip(prepared.launches, maps, strict=True):
            start = queue_of(source), one, listed, prepared.dtype, address(source)
            native._cuda.window_gather(*start, address(values), *ends, beside)
        return
    plan, entries = arranged(values, crow_indices, col_indices, prepared)
    for one, beside in zip(prepared.launches, maps, strict=True):
        by_rows = queue_of(source), one, prepared.dtype, address(source)
        of_list = address(entries), address(plan.bounds)
        if beside is None:
            native._cuda.gather(*by_rows, *of_list, *ends)
        else:
            native._cuda.fused_gather(*by_rows, *of_list, *ends, *beside)


def window_list(plan: WindowList, values: int) -> native._cuda._WindowList:
    return (
        address(plan.offsets),
        address(plan.bounds),
        address(plan.pieces),
        address(plan.places),
        address(plan.piece_bounds),
        plan.piece_size,
        values,
    )


def arranged(
    values: Tensor, crow_indices: Tensor, col_indices: Tensor, prepared: GatherPass
) -> tuple[lists.NonZeroList, Tensor]:
    """The pattern's list for a pass, and its entries: [entries, 2], offset and value."""
    plan = patterns.plan(crow_indices, col_indices, prepared.key, lists.build_list)
    plan.wait()
    entries = torch.empty(plan.entries, 2, dtype=torch.int32, device=values.device)
    native._cuda.arrange(
        queue_of(values),
        plan.entries,
        address(plan.offsets),
        address(plan.value_index),
        address(values),
        address(entries),
    )
    return plan, entries


def grad_weight_by_windows(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    prepared: WindowGradWeightPass,
    maps: tuple[native._cuda._SourceMap, native._cuda._SourceMap] | None = None,
) -> None:
    plan = patterns.plan(crow_indices, col_indices, prepared.key, build_windows)
    plan.wait()
    # Values of taps that meet only padding have no sums.
    empty = torch.zeros if prepared.unmet else torch.empty
    partial = empty(prepared.splits, out.numel(), dtype=torch.float32, device=x.device)
    native._cuda.window_grad_weight(
        queue_of(x),
        prepared.launch,
        window_list(plan, out.numel()),
        prepared.dtype,
        address(x),
        address(grad),
        address(partial),
        address(out),
        maps,
    )


def clear_unmet(
    out: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    prepared: AnyGradWeightPass,
) -> Tensor:
    """out [nnz] with zeros for the taps that meet only padding, which no kernel sees."""
    if prepared.unmet:
        zeros = patterns.plan(crow_indices, col_indices, prepared.unmet, lists.build_unmet)
        zeros.wait()
        out.view(zeros.mask.numel(), -1).masked_fill_(zeros.mask[:, None], 0)
    return out


def subsampled(x: Tensor, out_size: Sizes, shape: ConvShape) -> tuple[Tensor, ConvShape]:
    """A strided 1x1 convolution without padding reads every stride-th pixel: a view, stride 1."""
    if shape.kernel == (1, 1) and shape.stride != (1, 1) and not any(shape.padding):
        x = x[:, :, :: shape.stride[0], :: shape.stride[1]]
        x, shape = x[:, :, : out_size[0], : out_size[1]], shape._replace(stride=(1, 1))
    return x, shape


def density_of(nnz: int, shape: ConvShape) -> float:
    """Rounded, so that a rewire that moves a few non-zeros does not change the tiling."""
    return float(f"{nnz / math.prod(shape.weight_shape):.1g}")


def queue_of(x: Tensor) -> tuple[int, int]:
    """(device, stream) of a launch on x's device."""
    index = x.get_device()
    return index, stream_of(index)


def device_of(x: Tensor) -> tiling.Device:
    return _limits(x.device.index)


@functools.lru_cache(maxsize=64)
def _limits(index: int) -> tiling.Device:
    found = torch.cuda.get_device_properties(index)
    return tiling.Device(
        found.multi_processor_count,
        found.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )
