"""The CPU's native calls: ops.library has checked every argument and allocated `out`.

x [N, C, H, W] and y [N, O, P, Q] may have any strides. The kernels read and write bfloat16 beside
float32 values; float16 is converted here.
"""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends import live_taps
from dsr_kernels.backends.address import address, address_to_read
from dsr_kernels.backends.conv_shape import ConvShape, Pair
from dsr_kernels.backends.native import _C, DTYPE_CODES
from dsr_kernels.backends.patterns import patterns


class Geometry(NamedTuple):
    """Everything but the pattern that shapes a plan; the batch size does not."""

    input_size: tuple[int, ...]  # (C, H, W)
    output_size: tuple[int, ...]  # (O, P, Q)
    shape: ConvShape
    dtype: torch.dtype
    lanes: str = "plane"  # what fills the lanes of a vector: "plane", "row" or "batch"
    transposed: bool = False  # a plan for grad-input


def build_plan(crow_indices: Tensor, col_indices: Tensor, g: Geometry) -> _C.ConvPlan:
    channels, height, width = g.input_size
    rows, *output_size = g.output_size
    top, _, left, _ = g.shape.padding  # the output size says what lies below and to the right
    return _C.ConvPlan(
        rows,
        channels,
        height,
        width,
        g.shape.kernel,
        g.shape.stride,
        (top, left),
        output_size,
        g.shape.dilation,
        g.shape.groups,
        address_to_read(crow_indices),
        address_to_read(col_indices),
        col_indices.numel(),
        DTYPE_CODES[g.dtype],
        g.lanes,
        g.transposed,
    )


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
    parts = live_taps.parts_of(x.shape[2:], out.shape[2:], shape, False)
    if parts is not None:
        whole = values, bias, crow_indices, col_indices
        return live_taps.forward(sparse_conv2d, parts, out, x, *whole)
    dtype, n = values.dtype, x.shape[0]
    g = geometry(x, out, x.shape[1:], out.shape[1:], shape, dtype)
    plan = patterns.plan(crow_indices, col_indices, g, build_plan)
    x, values, y = _readable(x, dtype), values.contiguous(), _writable(out, dtype)
    bias = None if bias is None else bias.contiguous()
    threads = torch.get_num_threads()
    workspace = _workspace(plan, "forward", n, threads)
    plan.sparse_conv2d(
        n,
        activation(x, g),
        address(values),
        0 if bias is None else address(bias),
        activation(y, g),
        threads,
        address(workspace),
    )
    return out if y is out else out.copy_(y)


def sparse_conv2d_grad_input(
    out: Tensor,  # [N, C, H, W]
    grad: Tensor,  # [N, O, P, Q]
    values: Tensor,  # [nnz, 1] or [nnz]
    crow_indices: Tensor,
    col_indices: Tensor,
    shape: ConvShape,
) -> Tensor:
    """out = conv_transpose2d(grad, W) without the padding's share."""
    parts = live_taps.parts_of(out.shape[2:], grad.shape[2:], shape, True)
    if parts is not None:
        whole = values, crow_indices, col_indices
        return live_taps.grad_input(sparse_conv2d_grad_input, parts, out, grad, *whole)
    dtype, n = values.dtype, grad.shape[0]
    g = geometry(grad, out, out.shape[1:], grad.shape[1:], shape, dtype, transposed=True)
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
    parts = live_taps.parts_of(x.shape[2:], grad.shape[2:], shape, False)
    if parts is not None:
        whole = crow_indices, col_indices
        return live_taps.grad_weight(sparse_conv2d_grad_weight, parts, out, x, grad, *whole)
    dtype, n = out.dtype, x.shape[0]
    g = geometry(x, grad, x.shape[1:], grad.shape[1:], shape, dtype)
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
    grad = grad if grad.dtype == out.dtype else grad.to(out.dtype)
    n, channels, height, width = grad.shape
    workspace = scratch(_C.sparse_conv2d_grad_bias_workspace(n, channels))
    _C.sparse_conv2d_grad_bias(
        DTYPE_CODES[out.dtype],
        (n, channels, height, width),
        address(grad),
        grad.stride(),
        address(out),
        torch.get_num_threads(),
        address(workspace),
    )
    return out


def _workspace(plan: _C.ConvPlan, op: str, n: int, threads: int) -> Tensor:
    return scratch(plan.workspace_bytes(op, n, threads))


# Kept from call to call: freed in between, it would leave a hole behind every output, and its pages
# would be cold. One for each Python thread, since launches release the interpreter lock.
_kept = threading.local()
KEPT_BYTES = 64 << 20


def scratch(size: int) -> Tensor:
    """At least `size` bytes for one call, from torch; more than KEPT_BYTES is not kept."""
    if size > KEPT_BYTES:
        return torch.empty(size, dtype=torch.uint8)
    kept = getattr(_kept, "scratch", None)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = _kept.scratch = torch.empty(size, dtype=torch.uint8)
    return kept


def activation(x: Tensor, g: Geometry) -> tuple[int, bool, tuple[int, ...]]:
    """Address, whether it holds bfloat16, and strides. Where the geometry views an image as longer
    rows, so does the stride of a row.
    """
    n, c, h, w = x.stride()
    if g.lanes == "plane" and x.shape[2] not in (g.input_size[1], g.output_size[1]):
        h = g.input_size[2] * w
    return address(x), x.dtype == torch.bfloat16, (n, c, h, w)


def _readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if _native(x, dtype) else x.to(dtype)


def _writable(out: Tensor, dtype: torch.dtype) -> Tensor:
    return out if _native(out, dtype) else torch.empty_like(out, dtype=dtype)


def _native(x: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == dtype or (x.dtype == torch.bfloat16 and dtype == torch.float32)


def geometry(
    read: Tensor,
    written: Tensor,
    input_size: tuple[int, ...],  # (C, H, W)
    output_size: tuple[int, ...],  # (O, P, Q)
    shape: ConvShape,
    dtype: torch.dtype,
    transposed: bool = False,
) -> Geometry:
    """The geometry of a call, with the lanes that suit its batch and memory formats.

    A pointwise convolution sees an image as one long row: its height and width are whatever cuts
    well into vectors. `lanes_reason` says the same in words.
    """
    if _pointwise(shape):
        height, width = input_size[1:]
        if height > 1 and all(t.stride(2) == width * t.stride(3) for t in (read, written)):
            height, width = _long_rows(height * width)
        sizes = (input_size[0], height, width), (output_size[0], height, width)
        return Geometry(*sizes, shape, dtype, "plane", transposed)
    lanes = _C.choose_lanes(*_of_lanes(read, written, input_size, output_size, shape, dtype))
    return Geometry(input_size, output_size, shape, dtype, lanes, transposed)


def lanes_reason(read: Tensor, written: Tensor, g: Geometry) -> str:
    """Why `geometry`, called with these tensors, has chosen the lanes of `g`."""
    if _pointwise(g.shape):
        return "pointwise: an image is one long row"
    sizes = g.input_size, g.output_size
    return _C.lanes_reason(*_of_lanes(read, written, *sizes, g.shape, g.dtype))


def _pointwise(shape: ConvShape) -> bool:
    return shape.kernel == (1, 1) and shape.stride == (1, 1) and not any(shape.padding)


def _of_lanes(
    read: Tensor,
    written: Tensor,
    input_size: tuple[int, ...],
    output_size: tuple[int, ...],
    shape: ConvShape,
    dtype: torch.dtype,
) -> tuple[int, bool, int, int, Pair, Pair, Pair, Pair, str]:
    """The arguments of _C.choose_lanes and _C.lanes_reason."""
    top, _, left, _ = shape.padding
    return (
        read.shape[0],
        read.stride(3) == written.stride(3) == 1,
        input_size[2],
        output_size[2],
        shape.kernel,
        shape.stride,
        (top, left),
        shape.dilation,
        DTYPE_CODES[dtype],
    )


_long_rows = functools.lru_cache(maxsize=256)(_C.long_rows)
