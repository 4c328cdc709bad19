"""The CUDA kernels' native calls: ops.library has checked every argument and allocated `out`.

A call looks up two things: the list of the pattern's non-zeros in kernel order (`patterns`, made by
torch on the device) and the pass, which depends on sizes and strides alone. Work goes to torch's
current stream; workspaces are torch's, so memory counters are honest and CUDA graphs can capture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels.backends import native
from dsr_kernels.backends.address import address
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import call, lists
from dsr_kernels.backends.cuda.passes import forward_shape, grad_input_shape
from dsr_kernels.backends.cuda.prepare import DirectPass, GradWeightPass
from dsr_kernels.backends.cuda.window_grad_weight import WindowGradWeightPass
from dsr_kernels.backends.patterns import patterns


def sparse_conv2d(
    out: Tensor,  # [N, O, P, Q]
    x: Tensor,  # [N, C, H, W]
    values: Tensor,  # [blocks, block_size] or [nnz]
    bias: Tensor | None,  # [O]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = conv2d(pad(x), W) + bias."""
    x, shape = call.subsampled(x, out.shape[2:], shape)
    sizes = tuple(x.shape), tuple(out.shape)
    weight = values, bias, crow_indices, col_indices
    return _gather(out, x, weight, forward_shape, sizes, shape)


def sparse_conv2d_grad_input(
    out: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    values: Tensor,  # [blocks, block_size] or [nnz]
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
    x, shape = call.subsampled(x, grad.shape[2:], shape)
    kind = torch.promote_types(x.dtype, grad.dtype) if x.dtype != grad.dtype else x.dtype
    kind = out.dtype if out.dtype == torch.float64 else kind
    x, grad = x.to(kind), grad.to(kind)
    prepared = call.grad_weight_pass(
        tuple(x.shape),
        tuple(grad.shape),
        shape,
        call.density_of(out.numel(), shape),
        block_size_of(crow_indices, shape.weight_shape[0]),
        kind,
        x.stride(),
        grad.stride(),
        call.device_of(x),
        call.tf32_of(x, shape),
    )
    pattern = crow_indices, col_indices
    if isinstance(prepared, DirectPass):
        _direct_grad_weight(out, x, grad, *pattern, prepared)
    elif isinstance(prepared, WindowGradWeightPass):
        call.grad_weight_by_windows(out, x, grad, *pattern, prepared)
    else:
        _slab_grad_weight(out, x, grad, *pattern, prepared)
    return call.clear_unmet(out, *pattern, prepared)


def sparse_conv2d_grad_bias(out: Tensor, grad: Tensor) -> Tensor:
    """out [O] = grad [N, O, P, Q] summed over batch and image."""
    return torch.sum(grad, (0, 2, 3), dtype=out.dtype, out=out)


def _gather(
    out: Tensor,
    source: Tensor,
    weight: call.Weight,
    shape_of: call.ShapeOf,
    sizes: tuple[call.Sizes, call.Sizes],  # of x and y
    shape: ConvShape,
) -> Tensor:
    """A forward pass (shape_of: forward_shape) from x to y, or a grad-input from y to x."""
    if not out.numel():
        return out
    values, bias, crow_indices, col_indices = weight
    kind = values.dtype if values.dtype == torch.float64 else source.dtype
    source = source.to(kind)
    dest = out if out.dtype == kind else torch.empty_like(out, dtype=kind)
    prepared = call.gather_pass(
        shape_of,
        *sizes,
        shape,
        call.density_of(values.numel(), shape),
        block_size_of(crow_indices, shape.weight_shape[0]),
        kind,
        source.stride(),
        dest.stride(),
        call.device_of(source),
        call.tf32_of(source, shape),
    )
    bias = None if bias is None else bias.contiguous()
    weight = values.contiguous(), bias, crow_indices, col_indices
    if isinstance(prepared, DirectPass):
        _direct_gather(dest, source, weight, prepared)
    else:
        call.gather(dest, source, weight, prepared)
    return out if dest is out else out.copy_(dest)


def _direct_gather(dest: Tensor, source: Tensor, weight: call.Weight, prepared: DirectPass) -> None:
    values, bias, crow_indices, col_indices = weight
    plan = patterns.plan(crow_indices, col_indices, prepared.key, lists.build_direct_list)
    plan.wait()
    for launch in prepared.launches:
        native._cuda.direct_gather(
            call.queue_of(source),
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
        call.queue_of(x),
        prepared.launches[0],
        prepared.dtype,
        address(x),
        address(grad),
        out.numel(),
        address(plan.entries),
        address(plan.bounds),
        address(out),
    )
