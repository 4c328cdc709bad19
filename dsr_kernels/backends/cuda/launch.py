"""The CUDA kernels' native calls: ops.library has checked every argument and allocated `out`.

A call looks up two things: the list of the pattern's non-zeros in kernel order (`patterns`, made by
torch on the device) and the pass, which depends on sizes and strides alone. Work goes to torch's
current stream; workspaces are torch's, so memory counters are honest and CUDA graphs can capture.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from dsr_kernels.backends import native
from dsr_kernels.backends.address import address
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import lists, tiling
from dsr_kernels.backends.cuda.passes import PassShape, forward_shape, grad_input_shape
from dsr_kernels.backends.cuda.prepare import (
    DirectPass,
    GatherPass,
    GradWeightPass,
    prepare_gather,
    prepare_grad_weight,
)
from dsr_kernels.backends.patterns import patterns

Sizes = tuple[int, ...]
ShapeOf = Callable[[Sizes, Sizes, ConvShape], PassShape]


def sparse_conv2d(
    out: Tensor,  # [N, O, P, Q]
    x: Tensor,  # [N, C, H, W]
    values: Tensor,  # [nnz, 1] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = conv2d(pad(x), W) + bias."""
    x, shape = _subsampled(x, out.shape[2:], shape)
    sizes = tuple(x.shape), tuple(out.shape)
    weight = values, bias, crow_indices, col_indices
    return _gather(out, x, weight, forward_shape, sizes, shape)


def sparse_conv2d_grad_input(
    out: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    values: Tensor,  # [nnz, 1] or [nnz]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = conv_transpose2d(grad, W) without the padding's share."""
    sizes = tuple(out.shape), tuple(grad.shape)
    weight = values, None, crow_indices, col_indices
    return _gather(out, grad, weight, grad_input_shape, sizes, shape)


def sparse_conv2d_grad_weight(
    out: Tensor,  # [nnz]
    x: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = the dense weight's gradient at the non-zeros."""
    if not grad.numel():
        return out.zero_()
    x, shape = _subsampled(x, grad.shape[2:], shape)
    kind = torch.promote_types(x.dtype, grad.dtype) if x.dtype != grad.dtype else x.dtype
    kind = out.dtype if out.dtype == torch.float64 else kind
    x, grad = x.to(kind), grad.to(kind)
    prepared = _grad_weight_pass(
        tuple(x.shape),
        tuple(grad.shape),
        shape,
        _density(col_indices, shape),
        kind,
        x.stride(),
        grad.stride(),
        _device(x),
    )
    pattern = crow_indices, col_indices
    if isinstance(prepared, DirectPass):
        _direct_grad_weight(out, x, grad, *pattern, prepared)
    else:
        _slab_grad_weight(out, x, grad, *pattern, prepared)
    if prepared.unmet:
        zeros = patterns.plan(*pattern, prepared.unmet, lists.build_unmet)
        zeros.wait()
        out.masked_fill_(zeros.mask, 0)
    return out


def sparse_conv2d_grad_bias(out: Tensor, grad: Tensor) -> Tensor:
    """out [O] = grad [N, O, P, Q] summed over batch and image."""
    return torch.sum(grad, (0, 2, 3), dtype=out.dtype, out=out)


# values, bias, crow_indices, col_indices
Weight = tuple[Tensor, Tensor | None, Tensor, Tensor]


def _gather(
    out: Tensor,
    source: Tensor,
    weight: Weight,
    shape_of: ShapeOf,
    sizes: tuple[Sizes, Sizes],  # of x and y
    shape: ConvShape,
) -> Tensor:
    """A forward pass (shape_of: forward_shape) from x to y, or a grad-input from y to x."""
    if not out.numel():
        return out
    values, bias, crow_indices, col_indices = weight
    kind = values.dtype if values.dtype == torch.float64 else source.dtype
    source = source.to(kind)
    dest = out if out.dtype == kind else torch.empty_like(out, dtype=kind)
    prepared = _gather_pass(
        shape_of,
        *sizes,
        shape,
        _density(col_indices, shape),
        kind,
        source.stride(),
        dest.stride(),
        _device(source),
    )
    bias = None if bias is None else bias.contiguous()
    weight = values.contiguous(), bias, crow_indices, col_indices
    if isinstance(prepared, DirectPass):
        _direct_gather(dest, source, weight, prepared)
    else:
        _slab_gather(dest, source, weight, prepared)
    return out if dest is out else out.copy_(dest)


# Keyed by what a call has at hand: passes themselves are large, and slow to hash.
@functools.lru_cache(maxsize=2048)
def _gather_pass(
    shape_of: ShapeOf,
    x_size: Sizes,
    y_size: Sizes,
    shape: ConvShape,
    density: float,
    dtype: torch.dtype,
    source_strides: Sizes,
    dest_strides: Sizes,
    device: tiling.Device,
) -> GatherPass | DirectPass:
    sizes, images = shape_of(x_size[1:], y_size[1:], shape), x_size[0]
    return prepare_gather(sizes, images, density, dtype, source_strides, dest_strides, device)


@functools.lru_cache(maxsize=2048)
def _grad_weight_pass(
    x_size: Sizes,
    y_size: Sizes,
    shape: ConvShape,
    density: float,
    dtype: torch.dtype,
    x_strides: Sizes,
    grad_strides: Sizes,
    device: tiling.Device,
) -> GradWeightPass | DirectPass:
    sizes, images = forward_shape(x_size[1:], y_size[1:], shape), x_size[0]
    return prepare_grad_weight(sizes, images, density, dtype, x_strides, grad_strides, device)


def _slab_gather(dest: Tensor, source: Tensor, weight: Weight, prepared: GatherPass) -> None:
    values, bias, crow_indices, col_indices = weight
    cuda, queue = native._cuda, _queue(source)
    plan = patterns.plan(crow_indices, col_indices, prepared.key, lists.build_list)
    plan.wait()
    entries = torch.empty(plan.entries, 2, dtype=torch.int32, device=source.device)
    cuda.arrange(
        queue,
        plan.entries,
        address(plan.offsets),
        address(plan.value_index),
        address(values),
        address(entries),
    )
    for launch in prepared.launches:
        cuda.gather(
            queue,
            launch,
            prepared.dtype,
            address(source),
            address(entries),
            address(plan.bounds),
            0 if bias is None else address(bias),
            address(dest),
        )


def _direct_gather(dest: Tensor, source: Tensor, weight: Weight, prepared: DirectPass) -> None:
    values, bias, crow_indices, col_indices = weight
    plan = patterns.plan(crow_indices, col_indices, prepared.key, lists.build_direct_list)
    plan.wait()
    for launch in prepared.launches:
        native._cuda.direct_gather(
            _queue(source),
            launch,
            prepared.dtype,
            address(source),
            address(plan.entries),
            address(plan.bounds),
            address(values),
            0 if bias is None else address(bias),
            address(dest),
        )


def _slab_grad_weight(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    prepared: GradWeightPass,
) -> None:
    plan = patterns.plan(crow_indices, col_indices, prepared.key, lists.build_list)
    plan.wait()
    partial = torch.empty(prepared.splits, plan.entries, dtype=torch.float32, device=x.device)
    native._cuda.grad_weight(
        _queue(x),
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
    )


def _direct_grad_weight(
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
    prepared: DirectPass,
) -> None:
    plan = patterns.plan(crow_indices, col_indices, prepared.key, lists.build_direct_list)
    plan.wait()
    native._cuda.direct_grad_weight(
        _queue(x),
        prepared.launches[0],
        prepared.dtype,
        address(x),
        address(grad),
        col_indices.numel(),
        address(plan.entries),
        address(plan.bounds),
        address(out),
    )


def _subsampled(x: Tensor, out_size: Sizes, shape: ConvShape) -> tuple[Tensor, ConvShape]:
    """A strided 1x1 convolution without padding reads every stride-th pixel: a view, stride 1."""
    if shape.kernel == (1, 1) and shape.stride != (1, 1) and not any(shape.padding):
        x = x[:, :, :: shape.stride[0], :: shape.stride[1]]
        x, shape = x[:, :, : out_size[0], : out_size[1]], shape._replace(stride=(1, 1))
    return x, shape


def _density(col_indices: Tensor, shape: ConvShape) -> float:
    """Rounded, so that a rewire that moves a few non-zeros does not change the tiling."""
    return float(f"{col_indices.numel() / math.prod(shape.weight_shape):.1g}")


def _queue(x: Tensor) -> tuple[int, int]:
    """(device, stream) of a launch on x's device."""
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def _device(x: Tensor) -> tiling.Device:
    return _limits(x.device.index)


@functools.lru_cache(maxsize=64)
def _limits(index: int) -> tiling.Device:
    found = torch.cuda.get_device_properties(index)
    return tiling.Device(
        found.multi_processor_count,
        found.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )
