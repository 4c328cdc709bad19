"""The native calls: ops.py has checked every argument and allocated `out`.

x [N, C, H, W] and y [N, O, P, Q] may have any strides. `shape` is weight_shape, stride, padding
(top, bottom, left, right), dilation, groups. The kernels read and write bfloat16 beside float32
values; float16 is converted here.
"""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends.native import _C, DTYPE_CODES
from dsr_kernels.backends.plan_cache import cache


class Geometry(NamedTuple):
    """Everything but the pattern that shapes a plan; the batch size does not."""

    input_size: tuple[int, int, int]  # (C, H, W)
    output_size: tuple[int, int, int]  # (O, P, Q)
    weight_shape: tuple[int, int, int, int]  # (O, C // groups, KH, KW)
    stride: tuple[int, int]
    padding: tuple[int, int, int, int]  # top, bottom, left, right
    dilation: tuple[int, int]
    groups: int
    dtype: torch.dtype
    lanes: str = "plane"  # what fills the lanes of a vector: "plane", "row" or "batch"
    transposed: bool = False  # a plan for grad-input


def build_plan(crow: Tensor, col: Tensor, g: Geometry) -> _C.ConvPlan:
    channels, *input_size = g.input_size
    rows, *output_size = g.output_size
    top, _, left, _ = g.padding  # the output size says what lies below and to the right
    return _C.ConvPlan(
        rows,
        channels,
        *input_size,
        g.weight_shape[2:],
        g.stride,
        (top, left),
        output_size,
        g.dilation,
        g.groups,
        crow.data_ptr(),
        col.data_ptr(),
        col.numel(),
        DTYPE_CODES[g.dtype],
        g.lanes,
        g.transposed,
    )


def forward(
    out: Tensor, x: Tensor, values: Tensor, bias: Tensor | None, crow: Tensor, col: Tensor, *shape
) -> Tensor:
    """out [N, O, P, Q] = conv2d(x, W) + bias."""
    dtype, n = values.dtype, x.shape[0]
    g = geometry(x, out, x.shape[1:], out.shape[1:], *shape, dtype)
    plan = cache.get(crow, col, g, build_plan)
    x, values, y = _readable(x, dtype), values.contiguous(), _writable(out, dtype)
    bias = None if bias is None else bias.contiguous()
    threads = torch.get_num_threads()
    scratch = _workspace(plan, "forward", n, threads)
    plan.forward(
        n,
        _activation(x, g),
        values.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        _activation(y, g),
        threads,
        scratch.data_ptr(),
    )
    return out if y is out else out.copy_(y)


def grad_input(
    out: Tensor, grad: Tensor, values: Tensor, crow: Tensor, col: Tensor, *shape
) -> Tensor:
    """out [N, C, H, W] = the gradient of the input, from grad [N, O, P, Q]."""
    dtype, n = values.dtype, grad.shape[0]
    g = geometry(grad, out, out.shape[1:], grad.shape[1:], *shape, dtype, True)
    plan = cache.get(crow, col, g, build_plan)
    grad, values, gx = _readable(grad, dtype), values.contiguous(), _writable(out, dtype)
    threads = torch.get_num_threads()
    scratch = _workspace(plan, "grad_input", n, threads)
    plan.grad_input(
        n, _activation(grad, g), values.data_ptr(), _activation(gx, g), threads, scratch.data_ptr()
    )
    return out if gx is out else out.copy_(gx)


def grad_weight(out: Tensor, x: Tensor, grad: Tensor, crow: Tensor, col: Tensor, *shape) -> Tensor:
    """out [nnz] = the gradient of the values, from x [N, C, H, W] and grad [N, O, P, Q]."""
    dtype, n = out.dtype, x.shape[0]
    g = geometry(x, grad, x.shape[1:], grad.shape[1:], *shape, dtype)
    plan = cache.get(crow, col, g, build_plan)
    x, grad = _readable(x, dtype), _readable(grad, dtype)
    threads = torch.get_num_threads()
    scratch = _workspace(plan, "grad_weight", n, threads)
    plan.grad_weight(
        n, _activation(x, g), _activation(grad, g), out.data_ptr(), threads, scratch.data_ptr()
    )
    return out


def grad_bias(out: Tensor, grad: Tensor) -> Tensor:
    """out [O] = grad summed over batch and image, the same bits for any number of threads."""
    grad = grad if grad.dtype == out.dtype else grad.to(out.dtype)
    scratch = _scratch(_C.channel_sums_workspace(*grad.shape[:2]))
    _C.channel_sums(
        DTYPE_CODES[out.dtype],
        grad.shape,
        grad.data_ptr(),
        grad.stride(),
        out.data_ptr(),
        torch.get_num_threads(),
        scratch.data_ptr(),
    )
    return out


def _workspace(plan: _C.ConvPlan, op: str, n: int, threads: int) -> Tensor:
    return _scratch(plan.workspace_bytes(op, n, threads))


# Kept from call to call: freed in between, it would leave a hole behind every output, and its pages
# would be cold. One for each Python thread, since launches release the interpreter lock.
_kept = threading.local()
KEPT_BYTES = 64 << 20


def _scratch(size: int) -> Tensor:
    """At least `size` bytes for one call, from torch; more than KEPT_BYTES is not kept."""
    if size > KEPT_BYTES:
        return torch.empty(size, dtype=torch.uint8)
    kept = getattr(_kept, "scratch", None)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = _kept.scratch = torch.empty(size, dtype=torch.uint8)
    return kept


def _activation(x: Tensor, g: Geometry) -> tuple:
    """Address, whether it holds bfloat16, and strides with the row length of the geometry."""
    n, c, h, w = x.stride()
    if g.lanes == "plane" and x.shape[2] not in (g.input_size[1], g.output_size[1]):
        h = g.input_size[2] * w
    return x.data_ptr(), x.dtype == torch.bfloat16, (n, c, h, w)


def _readable(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if _native(x, dtype) else x.to(dtype)


def _writable(out: Tensor, dtype: torch.dtype) -> Tensor:
    return out if _native(out, dtype) else torch.empty_like(out, dtype=dtype)


def _native(x: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype == dtype or (x.dtype == torch.bfloat16 and dtype == torch.float32)


def geometry(
    read: Tensor,
    written: Tensor,
    input_size,
    output_size,
    weight_shape,
    stride,
    padding,
    dilation,
    groups,
    dtype,
    transposed=False,
) -> Geometry:
    """The geometry of a call, with the lanes that suit its batch and memory formats.

    A pointwise convolution sees an image as one long row: its height and width are whatever cuts
    well into vectors. `lanes_reason` says the same in words.
    """
    shape = weight_shape, stride, padding, dilation, groups
    if _pointwise(weight_shape, stride, padding):
        height, width = input_size[1:]
        if height > 1 and all(t.stride(2) == width * t.stride(3) for t in (read, written)):
            height, width = _long_rows(height * width)
        sizes = (input_size[0], height, width), (output_size[0], height, width)
        return Geometry(*sizes, *shape, dtype, "plane", transposed)
    lanes = _C.choose_lanes(*_of_lanes(read, written, input_size, output_size, *shape[:4], dtype))
    return Geometry(input_size, output_size, *shape, dtype, lanes, transposed)


def lanes_reason(
    read, written, input_size, output_size, weight_shape, stride, padding, dilation, _, dtype, *__
) -> str:
    """Why `geometry`, called with the same arguments, chooses its lanes."""
    shape = weight_shape, stride, padding, dilation
    if _pointwise(*shape[:3]):
        return "pointwise: an image is one long row"
    return _C.lanes_reason(*_of_lanes(read, written, input_size, output_size, *shape, dtype))


def _pointwise(weight_shape, stride, padding) -> bool:
    return weight_shape[2:] == (1, 1) and stride == (1, 1) and not any(padding)


def _of_lanes(
    read, written, input_size, output_size, weight_shape, stride, padding, dilation, dtype
) -> tuple:
    """The arguments of _C.choose_lanes and _C.lanes_reason."""
    rows, sides = read.stride(3) == written.stride(3) == 1, padding[::2]
    widths, kernel = (input_size[2], output_size[2]), weight_shape[2:]
    return read.shape[0], rows, *widths, kernel, stride, sides, dilation, DTYPE_CODES[dtype]


_long_rows = functools.lru_cache(maxsize=256)(_C.long_rows)
