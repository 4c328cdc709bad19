"""The CUDA kernels' native calls: ops.library has checked every argument and allocated `out`."""

from __future__ import annotations

import torch
from torch import Tensor

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import call
from dsr_kernels.backends.cuda.plans import Direction


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
    return _gather("forward", out, x, (values, bias, crow_indices, col_indices), shape)


def sparse_conv2d_grad_input(
    out: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    values: Tensor,  # [blocks, block_size] or [nnz]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = conv_transpose2d(grad, W) without the padding's share."""
    return _gather("grad_input", out, grad, (values, None, crow_indices, col_indices), shape)


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
    plan = call.plan_for("grad_weight", x, grad, out.numel(), crow_indices, shape)
    return call.grad_weight(out, x, grad, (crow_indices, col_indices), plan)


def sparse_conv2d_grad_bias(out: Tensor, grad: Tensor) -> Tensor:
    """out [O] = grad [N, O, P, Q] summed over batch and image."""
    return torch.sum(grad, (0, 2, 3), dtype=out.dtype, out=out)


def _gather(
    direction: Direction, out: Tensor, source: Tensor, weight: call.Weight, shape: ConvShape
) -> Tensor:
    """A forward pass, or a grad-input."""
    if not out.numel():
        return out
    values, bias, crow_indices, col_indices = weight
    kind = values.dtype if values.dtype == torch.float64 else source.dtype
    source = source.to(kind)
    dest = out if out.dtype == kind else torch.empty_like(out, dtype=kind)
    x, y = (source, dest) if direction == "forward" else (dest, source)
    plan = call.plan_for(direction, x, y, values.numel(), crow_indices, shape)
    bias = None if bias is None else bias.contiguous()
    weight = values.contiguous(), bias, crow_indices, col_indices
    call.gather(dest, source, weight, plan)
    return out if dest is out else out.copy_(dest)
