"""The CPU's kernels: ops.library has checked every argument and allocated `out`.

x [N, C, H, W] and y [N, O, P, Q] may have any strides. The kernels read and write bfloat16 beside
float32 values; float16 is converted here. What they take as it is comes by a prepared call
(`cpu_calls`) from the second time on.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dsr_kernels.backends import live_taps
from dsr_kernels.backends.address import address, refuse_without_memory
from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cpu_calls import Forward, is_native
from dsr_kernels.backends.cpu_plans import activation, build_plan, geometry, scratch
from dsr_kernels.backends.native import _C, DTYPE_CODES
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
    refuse_without_memory(input=x, weight_values=values, bias=bias)
    parts = live_taps.parts_of(x.shape[2:], out.shape[2:], shape, False)
    if parts is not None:
        whole = values, bias, crow_indices, col_indices
        return live_taps.forward(sparse_conv2d, parts, out, x, *whole)
    dtype, values = values.dtype, values.contiguous()
    x, y = _readable(x, dtype), _writable(out, dtype)
    call = Forward(y, x, values, crow_indices, col_indices, shape)
    call.into(y, x, values, None if bias is None else bias.contiguous())
    return out if y is out else out.copy_(y)


def sparse_conv2d_grad_input(
    out: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    values: Tensor,  # [blocks, block_size] or [nnz]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = conv_transpose2d(grad, W) without the padding's share."""
    refuse_without_memory(gradient=grad, weight_values=values)
    parts = live_taps.parts_of(out.shape[2:], grad.shape[2:], shape, True)
    if parts is not None:
        whole = values, crow_indices, col_indices
        return live_taps.grad_input(sparse_conv2d_grad_input, parts, out, grad, *whole)
    dtype, n = values.dtype, grad.shape[0]
    size = block_size_of(crow_indices, shape.rows)
    g = geometry(grad, out, out.shape[1:], grad.shape[1:], shape, dtype, True, size)
    plan = patterns.plan(crow_indices, col_indices, g, build_plan)
    grad, values, gx = _readable(grad, dtype), values.contiguous(), _writable(out, dtype)
    threads = torch.get_num_threads()
    workspace = _workspace(plan, "grad_input", n, threads)
    plan.sparse_conv2d_grad_input(
        n, activation(grad, g), address(values), activation(gx, g), threads, address(workspace)
    )
    return out if gx is out else out.copy_(gx)


def sparse_conv2d_grad_weight(
    out: Tensor,  # [nnz]
    x: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = the dense weight's gradient at the non-zeros."""
    refuse_without_memory(input=x, gradient=grad)
    parts = live_taps.parts_of(x.shape[2:], grad.shape[2:], shape, False)
    if parts is not None:
        whole = crow_indices, col_indices
        return live_taps.grad_weight(sparse_conv2d_grad_weight, parts, out, x, grad, *whole)
    dtype, n = out.dtype, x.shape[0]
    size = block_size_of(crow_indices, shape.rows)
    g = geometry(x, grad, x.shape[1:], grad.shape[1:], shape, dtype, block_size=size)
    plan = patterns.plan(crow_indices, col_indices, g, build_plan)
    x, grad = _readable(x, dtype), _readable(grad, dtype)
    threads = torch.get_num_threads()
    workspace = _workspace(plan, "grad_weight", n, threads)
    plan.sparse_conv2d_grad_weight(
        n, activation(x, g), activation(grad, g), address(out), threads, address(workspace)
    )
    return out


def sparse_conv2d_grad_bias(out: Tensor, grad: Tensor) -> Tensor:
    """out [O] = grad summed over batch and image, the same bits for any number of threads."""
    if grad.dtype != out.dtype:
        refuse_without_memory(gradient=grad)
        grad = grad.to(out.dtype)
    n, channels, height, width = grad.shape
    workspace = scratch(_grad_bias_workspace(n, channels))
    _C.sparse_conv2d_grad_bias(
        DTYPE_CODES[out.dtype],
        (n, channels, height, width),
        address(grad, "gradient"),
        grad.stride(),
        address(out),
        torch.get_num_threads(),
        address(workspace),
    )
    return out


_grad_bias_workspace = functools.lru_cache(maxsize=1024)(_C.sparse_conv2d_grad_bias_workspace)


def _workspace(plan: _C.ConvPlan, op: str, n: int, threads: int) -> Tensor:
    return scratch(plan.workspace_bytes(op, n, threads))


def _readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if is_native(x, dtype) else x.to(dtype)


def _writable(out: Tensor, dtype: torch.dtype) -> Tensor:
    return out if is_native(out, dtype) else torch.empty_like(out, dtype=dtype)
