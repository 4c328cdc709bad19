"""What the calls of the CUDA kernels, plain and fused, look up: plans, lists, queues, memory.

A call looks up two things: the list of the pattern's non-zeros in kernel order (`patterns`, made by
torch on the device) and the plan, which depends on sizes and strides alone. Then one native call
launches the whole pass on torch's current stream. Workspaces are torch's, so memory counters are
honest and CUDA graphs can capture.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsr_kernels.backends import native
from dsr_kernels.backends.address import address
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import lists, tensor_cores, window_lists
from dsr_kernels.backends.cuda.plans import (
    Device,
    Direction,
    PassPlan,
    Sizes,
    density_of,
    limits_of,
    plan_of,
)
from dsr_kernels.backends.devices import stream_of
from dsr_kernels.backends.patterns import patterns

Pattern = tuple[Tensor, Tensor]  # crow_indices, col_indices
# values, bias, crow_indices, col_indices
Weight = tuple[Tensor, Tensor | None, Tensor, Tensor]
GatherMaps = tuple["native._cuda._SourceMap", "native._cuda._DestMap"]
GradWeightMaps = tuple["native._cuda._SourceMap", "native._cuda._SourceMap"]


def plan_for(
    direction: Direction,
    x: Tensor,  # or x's gradient
    y: Tensor,  # or y's gradient
    nnz: int,
    crow_indices: Tensor,
    shape: ConvShape,
    windows: bool | None = None,
) -> PassPlan:
    """The plan of a pass on these tensors, which have one type.

    windows: whether tensor cores may be taken, where that is not as the user and torch say.
    """
    source, dest = (y, x) if direction == "grad_input" else (x, y)
    return plan_of(
        direction,
        tuple(x.shape),
        tuple(y.shape),
        shape,
        density_of(nnz, shape),
        block_size_of(crow_indices, shape.rows),
        source.dtype,
        source.stride(),
        dest.stride(),
        device_of(source),
        tensor_cores.allowed(source, shape) if windows is None else windows,
    )


def list_of(plan: PassPlan, crow_indices: Tensor, col_indices: Tensor) -> lists.OnDevice:
    """The pattern's list for a plan; `wait` for it before its use."""
    build: Any
    if plan.kind == "direct":
        build = lists.build_direct_list
    else:
        build = window_lists.build_windows if plan.kind == "window" else lists.build_list
    return patterns.plan(crow_indices, col_indices, plan.key, build)


def gather(
    dest: Tensor, source: Tensor, weight: Weight, plan: PassPlan, maps: GatherMaps | None = None
) -> None:
    """A forward or grad-input pass; `maps` says what is done beside."""
    values, bias, crow_indices, col_indices = weight
    listed, queue = list_of(plan, crow_indices, col_indices), queue_of(source)
    size = plan.native.workspace_bytes(listed.handle, maps is not None and any(maps[1][4]))
    workspace = torch.empty(size, dtype=torch.uint8, device=dest.device)
    listed.wait(queue[1])
    plan.native.gather(
        queue,
        listed.handle,
        address(source),
        address(values),
        0 if bias is None else address(bias),
        address(dest),
        address(workspace),
        maps,
    )


def grad_weight(
    out: Tensor,  # [nnz]
    x: Tensor,
    grad: Tensor,
    pattern: Pattern,
    plan: PassPlan,
    maps: GradWeightMaps | None = None,
) -> Tensor:
    """out = the dense weight's gradient at the non-zeros."""
    listed, queue = list_of(plan, *pattern), queue_of(x)
    size = plan.native.workspace_bytes(listed.handle)
    empty = torch.zeros if starts_at_zero(plan) else torch.empty
    workspace = empty(size, dtype=torch.uint8, device=x.device)
    listed.wait(queue[1])
    plan.native.grad_weight(
        queue,
        listed.handle,
        address(x),
        address(grad),
        address(out),
        address(workspace),
        maps,
    )
    if plan.unmet:
        clear_unmet(out, unmet_list(plan, *pattern), queue[1])
    return out


def starts_at_zero(plan: PassPlan) -> bool:
    """Of the workspace: windows sum nothing for values of taps that meet only padding."""
    return plan.kind == "window" and bool(plan.unmet)


def unmet_list(plan: PassPlan, crow_indices: Tensor, col_indices: Tensor) -> lists.UnmetList:
    return patterns.plan(crow_indices, col_indices, plan.unmet, lists.build_unmet)


def clear_unmet(out: Tensor, unmet: lists.UnmetList, stream: int) -> None:
    """Zeros in out [nnz] for the taps that meet only padding, which no kernel sees."""
    unmet.wait(stream)
    out.view(unmet.mask.numel(), -1).masked_fill_(unmet.mask[:, None], 0)


def subsampled(x: Tensor, out_size: Sizes, shape: ConvShape) -> tuple[Tensor, ConvShape]:
    """A strided 1x1 convolution without padding reads every stride-th pixel: a view, stride 1."""
    if not skips_pixels(shape):
        return x, shape
    return every_step(x, out_size, shape), shape._replace(stride=(1, 1))


def skips_pixels(shape: ConvShape) -> bool:
    return shape.kernel == (1, 1) and shape.stride != (1, 1) and not any(shape.padding)


def every_step(x: Tensor, out_size: Sizes, shape: ConvShape) -> Tensor:
    return x[:, :, :: shape.stride[0], :: shape.stride[1]][:, :, : out_size[0], : out_size[1]]


def queue_of(x: Tensor) -> tuple[int, int]:
    """(device, stream) of a launch on x's device."""
    index = x.get_device()
    return index, stream_of(index)


def device_of(x: Tensor) -> Device:
    return limits_of(x.device.index)
