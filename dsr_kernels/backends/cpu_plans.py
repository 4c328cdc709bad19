"""Plans of the CPU: what shapes one, and the memory that it works in."""

from __future__ import annotations

import functools
import threading
from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends.address import address, address_to_read
from dsr_kernels.backends.conv_shape import ConvShape, Pair
from dsr_kernels.backends.native import _C, DTYPE_CODES


class Geometry(NamedTuple):
    """Everything but the pattern that shapes a plan; the batch size does not."""

    input_size: tuple[int, ...]  # (C, H, W)
    output_size: tuple[int, ...]  # (O, P, Q)
    shape: ConvShape
    dtype: torch.dtype
    lanes: str = "plane"  # what fills the lanes of a vector: "plane", "row", "batch"; or "matrix"
    transposed: bool = False  # a plan for grad-input
    block_size: int = 1  # output channels that share their positions


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
        g.block_size,
    )


def geometry(
    read: Tensor,
    written: Tensor,
    input_size: tuple[int, ...],  # (C, H, W)
    output_size: tuple[int, ...],  # (O, P, Q)
    shape: ConvShape,
    dtype: torch.dtype,
    transposed: bool = False,
    block_size: int = 1,
) -> Geometry:
    """The geometry of a call, with the lanes that suit its batch and memory formats.

    A pointwise convolution sees an image as one long row: its height and width are whatever cuts
    well into vectors. `lanes_reason` says the same in words.
    """
    if _pointwise(shape):
        height, width = input_size[1:]
        if height > 1 and all(t.stride(2) == width * t.stride(3) for t in (read, written)):
            height, width = _long_rows(height * width)
        input_size = (input_size[0], height, width)
        output_size = (output_size[0], height, width)
    of_lanes = _of_lanes(read, written, input_size, output_size, shape, dtype)
    lanes = _C.choose_lanes(*of_lanes, block_size, _in_bfloat16(read, written))
    return Geometry(input_size, output_size, shape, dtype, lanes, transposed, block_size)


def lanes_reason(read: Tensor, written: Tensor, g: Geometry) -> str:
    """Why `geometry`, called with these tensors, has chosen the lanes of `g`."""
    if _pointwise(g.shape) and g.lanes == "plane":
        return "pointwise: an image is one long row"
    of_lanes = _of_lanes(read, written, g.input_size, g.output_size, g.shape, g.dtype)
    return _C.lanes_reason(*of_lanes, g.block_size, _in_bfloat16(read, written))


def _pointwise(shape: ConvShape) -> bool:
    return shape.kernel == (1, 1) and shape.stride == (1, 1) and not any(shape.padding)


def _in_bfloat16(read: Tensor, written: Tensor) -> bool:
    return read.dtype == written.dtype == torch.bfloat16


def _of_lanes(
    read: Tensor,
    written: Tensor,
    input_size: tuple[int, ...],
    output_size: tuple[int, ...],
    shape: ConvShape,
    dtype: torch.dtype,
) -> tuple[int, bool, int, int, Pair, Pair, Pair, Pair, str]:
    """The arguments of _C.choose_lanes and _C.lanes_reason, but the block size."""
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


def activation(x: Tensor, g: Geometry, name: str = "") -> tuple[int, bool, tuple[int, ...]]:
    """Address, whether it holds bfloat16, and strides. Where the geometry views an image as longer
    rows, so does the stride of a row.
    """
    n, c, h, w = x.stride()
    if g.lanes in ("plane", "matrix") and x.shape[2] not in (g.input_size[1], g.output_size[1]):
        h = g.input_size[2] * w
    return address(x, name), x.dtype == torch.bfloat16, (n, c, h, w)


# Kept from call to call: freed in between, it would leave a hole behind every output, and its pages
# would be cold. One for each Python thread, since launches release the interpreter lock.
_kept = threading.local()
KEPT_BYTES = 64 << 20


def scratch(size: int) -> Tensor:
    """At least `size` bytes for one call, from torch; more than KEPT_BYTES is not kept."""
    if size > KEPT_BYTES:
        return torch.empty(size, dtype=torch.uint8, device="cpu")
    kept = getattr(_kept, "scratch", None)
    if kept is None or kept.numel() < size:
        with torch.inference_mode(False):
            kept = _kept.scratch = torch.empty(size, dtype=torch.uint8, device="cpu")
    return kept
