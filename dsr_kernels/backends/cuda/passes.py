"""A pass of the GPU kernels in words: which source pixels a destination pixel reads.

Forward, grad-weight and grad-input are gathers. Destination pixels fall into classes: one class in
a forward pass; in a grad-input with stride (s, t), s * t of them, by the remainders of row and
column, each a gather of its own with the taps that reach it. In a class,

    source row of (destination row j, tap) = first_h + j * row_step + dh(tap),   dh >= 0

and likewise for columns. Taps that meet only padding belong to no class.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.live_taps import Axis, axes_of


@dataclass(frozen=True)
class PassClass:
    """One class of destination pixels."""

    rows: int
    cols: int
    dest_h: int  # destination pixel of (0, 0)
    dest_w: int
    first_h: int  # source pixel of (0, 0) under the first tap; negative: padding
    first_w: int
    taps: tuple[tuple[int, int, int], ...]  # (kh * KW + kw, dh, dw) of the taps that reach it

    @property
    def reach_h(self) -> int:
        return max((dh for _, dh, _ in self.taps), default=0)

    @property
    def reach_w(self) -> int:
        return max((dw for _, _, dw in self.taps), default=0)


@dataclass(frozen=True)
class PassShape:
    """Sizes of a pass; channels are those of one group."""

    groups: int
    source_channels: int
    dest_channels: int
    height: int  # of a source image
    width: int
    taps: int  # KH * KW
    row_step: int  # source pixels from one destination position to the next
    col_step: int
    dest_step_h: int  # destination pixels from one position to the next
    dest_step_w: int
    transposed: bool
    classes: tuple[PassClass, ...]


@functools.lru_cache(maxsize=1024)
def forward_shape(
    input_size: tuple[int, ...],  # (C, H, W)
    output_size: tuple[int, ...],  # (O, P, Q)
    shape: ConvShape,
) -> PassShape:
    """The pass that reads the input, for forward and grad-weight."""
    (rows, depth, kernel_h, kernel_w), *_, groups = shape
    _, out_height, out_width = output_size
    vertical, horizontal = axes_of(input_size[1:], output_size[1:], shape)
    (first_h, down), (first_w, across) = _live(vertical), _live(horizontal)
    taps = tuple((kh * kernel_w + kw, dh, dw) for kh, dh in down for kw, dw in across)
    only = PassClass(out_height, out_width, 0, 0, first_h, first_w, taps)
    return PassShape(
        groups=groups,
        source_channels=depth,
        dest_channels=rows // groups,
        height=input_size[1],
        width=input_size[2],
        taps=kernel_h * kernel_w,
        row_step=shape.stride[0],
        col_step=shape.stride[1],
        dest_step_h=1,
        dest_step_w=1,
        transposed=False,
        classes=(only,),
    )


def _live(axis: Axis) -> tuple[int, list[tuple[int, int]]]:
    """Source pixel of the first tap that meets the image; (tap, distance from it) of all such."""
    live = [tap for tap in range(axis.kernel) if axis.met(tap)]
    if not live:
        return 0, []
    at = live[0] * axis.dilation - axis.before
    return at, [(tap, (tap - live[0]) * axis.dilation) for tap in live]


@functools.lru_cache(maxsize=1024)
def grad_input_shape(
    input_size: tuple[int, ...],  # (C, H, W)
    output_size: tuple[int, ...],  # (O, P, Q)
    shape: ConvShape,
) -> PassShape:
    """The pass that reads the output's gradient and writes the input's."""
    (rows, depth, kernel_h, kernel_w), stride, *_, groups = shape
    vertical, horizontal = map(_remainders, axes_of(input_size[1:], output_size[1:], shape))
    classes = tuple(
        PassClass(
            *(v.count, h.count, v.dest, h.dest, v.first, h.first),
            tuple((kh * kernel_w + kw, dh, dw) for kh, dh in v.taps for kw, dw in h.taps),
        )
        for v, h in itertools.product(vertical, horizontal)
    )
    return PassShape(
        groups=groups,
        source_channels=rows // groups,
        dest_channels=depth,
        height=output_size[1],
        width=output_size[2],
        taps=kernel_h * kernel_w,
        row_step=1,
        col_step=1,
        dest_step_h=stride[0],
        dest_step_w=stride[1],
        transposed=True,
        classes=classes,
    )


@dataclass(frozen=True)
class _Remainder:
    """The pixels of one dimension with the same (pixel + padding) mod stride."""

    count: int
    dest: int  # the first of them
    first: int  # the gradient's pixel that it meets under the first tap
    taps: tuple[tuple[int, int], ...]  # (tap, distance from the first tap's pixel)


def _remainders(axis: Axis) -> list[_Remainder]:
    found = []
    size, stride, padding, dilation = axis.size, axis.stride, axis.before, axis.dilation
    for remainder in sorted({(pixel + padding) % stride for pixel in range(min(stride, size))}):
        # Where pixel + padding = remainder + stride * j, tap k meets the output's pixel
        # (remainder - k * dilation) / stride + j.
        start = max(0, -(-(padding - remainder) // stride))
        dest = remainder + stride * start - padding
        count = -(-(size - dest) // stride)
        reached = [
            (k, (remainder - k * dilation) // stride)
            for k in range(axis.kernel)
            if (remainder - k * dilation) % stride == 0 and axis.met(k)
        ]
        lowest = min((at for _, at in reached), default=-start)
        taps = tuple((k, at - lowest) for k, at in reached)
        found.append(_Remainder(count, dest, start + lowest, taps))
    return found
