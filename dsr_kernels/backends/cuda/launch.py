"""The GPU's native calls, with the signatures of launch.py: ops.py has checked every argument.

A call looks up two things: the list of the pattern's non-zeros in kernel order (PlanCache, made by
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
from dsr_kernels.backends.cuda import lists, tiling
from dsr_kernels.backends.cuda.passes import PassShape, forward_shape, grad_input_shape
from dsr_kernels.backends.cuda.prepare import (
    DirectPass,
    GatherPass,
    GradWeightPass,
    prepare_gather,
    prepare_grad_weight,
)
from dsr_kernels.backends.plan_cache import cache


def forward(
    out: Tensor, x: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, *shape
) -> Tensor:
    """out [N, O, P, Q] = conv2d(x, W) + bias."""
    x, shape = _subsampled(x, out.shape[2:], *shape)
    return _gather(out, x, values, bias, crow, col, forward_shape, x, out, shape)


def grad_input(
    out: Tensor, grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, *shape
) -> Tensor:
    """out [N, C, H, W] = the gradient of the input, from grad [N, O, P, Q]."""
    return _gather(out, grad, values, None, crow, col, grad_input_shape, out, grad, shape)


def grad_weight(out: Tensor, x: Tensor, grad: Tensor, crow: Tensor, col: Tensor, *shape) -> Tensor:
    """out [nnz] = the gradient of the values, from x [N, C, H, W] and grad [N, O, P, Q]."""
    if not grad.numel():
        return out.zero_()
    x, shape = _subsampled(x, grad.shape[2:], *shape)
    kind = torch.promote_types(x.dtype, grad.dtype) if x.dtype != grad.dtype else x.dtype
    kind = out.dtype if out.dtype == torch.float64 else kind
    x, grad = x.to(kind), grad.to(kind)
    sizes = tuple(x.shape), tuple(grad.shape), shape, _density(col, shape), kind
    prepared = _grad_weight_pass(*sizes, x.stride(), grad.stride(), _device(x))
    if isinstance(prepared, DirectPass):
        return _direct_grad_weight(out, x, grad, crow, col, prepared)
    return _slab_grad_weight(out, x, grad, crow, col, prepared)


def grad_bias(out: Tensor, grad: Tensor) -> Tensor:
    """out [O] = grad summed over batch and image."""
    return torch.sum(grad, (0, 2, 3), dtype=out.dtype, out=out)


def _gather(
    out: Tensor,
    source: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow: Tensor,
    col: Tensor,
    pass_shape: Callable[..., PassShape],
    x: Tensor,
    y: Tensor,
    shape: tuple,
) -> Tensor:
    """A forward pass (pass_shape: forward_shape) from x to y, or a grad-input from y to x."""
    if not out.numel():
        return out
    kind = values.dtype if values.dtype == torch.float64 else source.dtype
    source = source.to(kind)
    dest = out if out.dtype == kind else torch.empty_like(out, dtype=kind)
    sizes = tuple(x.shape), tuple(y.shape), shape, _density(col, shape), kind
    prepared = _gather_pass(pass_shape, *sizes, source.stride(), dest.stride(), _device(source))
    values = values.contiguous()
    bias = None if bias is None else bias.contiguous()
    run = _direct_gather if isinstance(prepared, DirectPass) else _slab_gather
    run(dest, source, values, bias, crow, col, prepared)
    return out if dest is out else out.copy_(dest)


# Keyed by what a call has at hand: passes themselves are large, and slow to hash.
@functools.lru_cache(maxsize=2048)
def _gather_pass(pass_shape, x_size, y_size, shape, *how) -> GatherPass | DirectPass:
    return prepare_gather(pass_shape(x_size[1:], y_size[1:], *shape), x_size[0], *how)


@functools.lru_cache(maxsize=2048)
def _grad_weight_pass(x_size, y_size, shape, *how) -> GradWeightPass | DirectPass:
    return prepare_grad_weight(forward_shape(x_size[1:], y_size[1:], *shape), x_size[0], *how)


def _slab_gather(dest, source, values, bias, crow, col, prepared: GatherPass) -> None:
    cuda, queue = native._cuda, _queue(source)
    plan = _plan(crow, col, prepared.key, lists.build_list)
    entries = torch.empty(plan.entries, 2, dtype=torch.int32, device=source.device)
    cuda.arrange(
        queue,
        plan.entries,
        plan.offsets.data_ptr(),
        plan.value_index.data_ptr(),
        values.data_ptr(),
        entries.data_ptr(),
    )
    for launch in prepared.launches:
        cuda.gather(
            queue,
            launch,
            prepared.dtype,
            source.data_ptr(),
            entries.data_ptr(),
            plan.bounds.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            dest.data_ptr(),
        )


def _direct_gather(dest, source, values, bias, crow, col, prepared: DirectPass) -> None:
    plan = _plan(crow, col, prepared.key, lists.build_direct_list)
    for launch in prepared.launches:
        native._cuda.direct_gather(
            _queue(source),
            launch,
            prepared.dtype,
            source.data_ptr(),
            plan.entries.data_ptr(),
            plan.bounds.data_ptr(),
            values.data_ptr(),
            0 if bias is None else bias.data_ptr(),
            dest.data_ptr(),
        )


def _slab_grad_weight(out, x, grad, crow, col, prepared: GradWeightPass) -> Tensor:
    plan = _plan(crow, col, prepared.key, lists.build_list)
    partial = torch.empty(prepared.splits, plan.entries, dtype=torch.float32, device=x.device)
    native._cuda.grad_weight(
        _queue(x),
        prepared.launch,
        plan.entries,
        prepared.dtype,
        x.data_ptr(),
        grad.data_ptr(),
        plan.offsets.data_ptr(),
        plan.value_index.data_ptr(),
        plan.bounds.data_ptr(),
        partial.data_ptr(),
        out.data_ptr(),
    )
    return out


def _direct_grad_weight(out, x, grad, crow, col, prepared: DirectPass) -> Tensor:
    plan = _plan(crow, col, prepared.key, lists.build_direct_list)
    native._cuda.direct_grad_weight(
        _queue(x),
        prepared.launches[0],
        prepared.dtype,
        x.data_ptr(),
        grad.data_ptr(),
        col.numel(),
        plan.entries.data_ptr(),
        plan.bounds.data_ptr(),
        out.data_ptr(),
    )
    return out


def _plan(crow: Tensor, col: Tensor, key, build):
    plan = cache.get(crow, col, key, build)
    plan.wait()
    return plan


def _subsampled(x: Tensor, out_size, weight_shape, stride, padding, dilation, groups):
    """A strided 1x1 convolution without padding reads every stride-th pixel: a view, stride 1."""
    if weight_shape[2:] == (1, 1) and stride != (1, 1) and not any(padding):
        x, stride = x[:, :, :: stride[0], :: stride[1]], (1, 1)
        x = x[:, :, : out_size[0], : out_size[1]]
    return x, (weight_shape, stride, padding, dilation, groups)


def _density(col: Tensor, shape: tuple) -> float:
    """Rounded, so that a rewire that moves a few non-zeros does not change the tiling."""
    return float(f"{col.numel() / math.prod(shape[0]):.1g}")


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
        found.shared_memory_per_block_optin,
    )
