"""Convolutions whose taps or outputs meet nothing but padding, cut down to what meets the image.

A tap is dead where it falls on padding for every output pixel: all but the middle one of a 3x3
kernel that is dilated by 8 on an 8x8 image. Likewise, an output pixel that no tap carries to the
image is the bias alone. Rows and columns are judged apart. The taps of an axis form groups, such
that what those of two groups write lies apart; a `Part` is the convolution of a group of rows
and one of columns, between the windows that they read and write. It is a convolution like any
other, so the kernels need not know. Every live tap belongs to one part.

    kernel 2, dilation = padding = 40, 4 pixels, 44 outputs:
    tap 0 reads pixels 0 ... 3 for outputs 40 ... 43, tap 1 for outputs 0 ... 3; between is the bias

Convolutions without dead taps at the ends of their kernel, of whose outputs less than half and NEAR
rows and columns are left out, stay whole.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends.blocks import block_size_of
from dsr_kernels.backends.conv_shape import ConvShape, Pair
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.topology import check_pattern, rows_of

NEAR = 16  # so many pixels in vain cost less than a part of its own
Launch = Callable[..., Tensor]  # sparse_conv2d and its gradients, as in backends.dispatch.Backend


class Axis(NamedTuple):
    """A convolution along rows or along columns."""

    size: int  # of the input
    out: int  # of the output
    kernel: int
    stride: int
    before: int  # padding
    dilation: int

    def met(self, tap: int) -> tuple[Pair, Pair] | None:
        """((first, end) of the input, of the output) where the tap meets the image; None: dead."""
        at = tap * self.dilation - self.before  # the input's pixel of output 0
        first = max(0, -(at // self.stride))
        last = min(self.out - 1, (self.size - 1 - at) // self.stride)
        if first > last:
            return None
        return (first * self.stride + at, last * self.stride + at + 1), (first, last + 1)


class Group(NamedTuple):
    """Taps of an axis, and the windows between which they are a convolution of their own."""

    taps: tuple[int, ...]
    source: Pair  # (first, end) of the input
    dest: Pair  # of the output

    def padding(self, axis: Axis) -> Pair:
        """(before, after) its window of the input."""
        (first, end), (start, stop) = self.source, self.dest
        before = first - (start * axis.stride + self.taps[0] * axis.dilation - axis.before)
        last = (stop - 1) * axis.stride + self.taps[-1] * axis.dilation - axis.before
        return before, max(0, last + 1 - end)


class Taps(NamedTuple):
    """Some taps of a weight: those in `rows` and `cols` of its kernel."""

    weight_shape: tuple[int, ...]
    rows: tuple[int, ...]
    cols: tuple[int, ...]

    @property
    def kernel(self) -> Pair:
        """(height, width) of the smallest kernel that has them."""
        return self.rows[-1] - self.rows[0] + 1, self.cols[-1] - self.cols[0] + 1


class Part(NamedTuple):
    taps: Taps
    shape: ConvShape
    input: tuple[Pair, Pair]  # its windows: (first, end) of rows and of columns
    output: tuple[Pair, Pair]

    def of_input(self, x: Tensor) -> Tensor:
        return _window(x, self.input)

    def of_output(self, y: Tensor) -> Tensor:
        return _window(y, self.output)


class Parts(NamedTuple):
    parts: tuple[Part, ...]  # none where no tap meets the image
    whole: bool  # whether they write all that there is to write


class Selection:
    """The pattern of a part, kept with the whole one's plans; its own plans live as long."""

    def __init__(self, crow_indices: Tensor, col_indices: Tensor, kept: Tensor) -> None:
        self.pattern = crow_indices, col_indices
        self.kept = kept  # [its non-zeros] int64, among those of the whole pattern
        self._owned = patterns.own(crow_indices, col_indices, self, None)

    def label(self) -> str:
        return "a part of a convolution"

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (*self.pattern, self.kept))


@functools.lru_cache(maxsize=4096)
def parts_of(
    size: tuple[int, ...],  # (H, W)
    out_size: tuple[int, ...],  # (P, Q)
    shape: ConvShape,
    transposed: bool,  # grad-input, which writes the input's window
) -> Parts | None:
    """What is left to compute; None: all of it, as one convolution."""
    axes = axes_of(size, out_size, shape)
    written = size if transposed else out_size
    groups = [_groups(axis, transposed) for axis in axes]
    if groups[0] is None and groups[1] is None:
        return None
    rows, cols = (
        [Group(tuple(range(axis.kernel)), (0, axis.size), (0, axis.out))] if g is None else g
        for g, axis in zip(groups, axes, strict=True)
    )
    parts = tuple(_part(shape, axes, both) for both in itertools.product(rows, cols))
    windows = [part.input if transposed else part.output for part in parts]
    return Parts(parts, windows == [tuple((0, n) for n in written)])


def axes_of(
    size: tuple[int, ...], out_size: tuple[int, ...], shape: ConvShape
) -> tuple[Axis, Axis]:
    """The rows and the columns of a convolution."""
    (height, width), (out_height, out_width) = size, out_size
    top, _, left, _ = shape.padding
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.stride, shape.dilation
    return Axis(height, out_height, kh, sh, top, dh), Axis(width, out_width, kw, sw, left, dw)


def _groups(axis: Axis, transposed: bool) -> list[Group] | None:
    """None: the axis stays as it is."""
    met = ((tap, axis.met(tap)) for tap in range(axis.kernel))
    alone = [Group((tap,), *windows) for tap, windows in met if windows is not None]
    if not alone:
        return []
    everything = functools.reduce(_joined, alone)
    taken_out = everything.taps[-1] - everything.taps[0] + 1 < axis.kernel
    groups = [alone[0]]
    for group in alone[1:]:
        if _near(_written(groups[-1], transposed), _written(group, transposed)):
            groups[-1] = _joined(groups[-1], group)
        else:
            groups.append(group)
    windows = sorted(_written(group, transposed) for group in groups)
    apart = not any(_near(*two) for two in itertools.pairwise(windows))
    written = sum(end - first for first, end in windows)
    unwritten = (axis.size if transposed else axis.out) - written
    if apart and unwritten >= max(written, NEAR):
        return groups
    return [everything] if taken_out else None


def _joined(a: Group, b: Group) -> Group:
    source = min(a.source[0], b.source[0]), max(a.source[1], b.source[1])
    return Group(a.taps + b.taps, source, (min(a.dest[0], b.dest[0]), max(a.dest[1], b.dest[1])))


def _near(a: Pair, b: Pair) -> bool:
    return a[0] < b[1] + NEAR and b[0] < a[1] + NEAR


def _written(group: Group, transposed: bool) -> Pair:
    return group.source if transposed else group.dest


def _part(shape: ConvShape, axes: tuple[Axis, Axis], both: tuple[Group, Group]) -> Part:
    rows, cols = both
    taps = Taps(shape.weight_shape, rows.taps, cols.taps)
    padding = (*rows.padding(axes[0]), *cols.padding(axes[1]))
    return Part(
        taps,
        shape._replace(weight_shape=(*shape.weight_shape[:2], *taps.kernel), padding=padding),
        (rows.source, cols.source),
        (rows.dest, cols.dest),
    )


def _window(x: Tensor, window: tuple[Pair, Pair]) -> Tensor:
    (top, bottom), (left, right) = window
    return x[:, :, top:bottom, left:right]


def select(crow_indices: Tensor, col_indices: Tensor, taps: Taps) -> Selection:
    """The non-zeros at these taps, as the pattern of a weight whose kernel is no larger.

    Raises ValueError where the indices are no pattern of the weight's shape.
    """
    size = block_size_of(crow_indices, taps.weight_shape[0])
    check_pattern(taps.weight_shape, crow_indices, col_indices, size)
    rows, cols = (torch.tensor(each, device="cpu") for each in (taps.rows, taps.cols))
    rows = rows[:, None]
    height, width = taps.kernel
    place = torch.full(
        taps.weight_shape[2:], -1, device="cpu"
    )  # of each tap, in the smaller kernel
    place[rows, cols] = (rows - taps.rows[0]) * width + cols - taps.cols[0]
    channel, tap = col_indices.long() // place.numel(), col_indices.long() % place.numel()
    inner = place.flatten().to(col_indices.device)[tap]
    kept = (inner >= 0).nonzero().squeeze(1)
    counts = torch.bincount(rows_of(crow_indices)[kept], minlength=crow_indices.numel() - 1)
    crow = torch.zeros_like(crow_indices)
    crow[1:] = counts.cumsum(0)
    return Selection(crow, (channel * height * width + inner)[kept].int(), kept)


# --- the passes, part by part ---------------------------------------------------------------------


def forward(
    launch: Launch,
    parts: Parts,
    out: Tensor,
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    crow_indices: Tensor,
    col_indices: Tensor,
) -> Tensor:
    """As sparse_conv2d, with `launch` for each part."""
    if not parts.whole:
        out.zero_() if bias is None else out.copy_(bias.view(1, -1, 1, 1))
    for part in parts.parts:
        chosen = patterns.plan(crow_indices, col_indices, part.taps, select)
        weight = _blocks(values, col_indices).index_select(0, chosen.kept), bias, *chosen.pattern
        launch(part.of_output(out), part.of_input(x), *weight, part.shape)
    return out


def grad_input(
    launch: Launch,
    parts: Parts,
    out: Tensor,
    grad: Tensor,
    values: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
) -> Tensor:
    """As sparse_conv2d_grad_input, with `launch` for each part."""
    if not parts.whole:
        out.zero_()
    for part in parts.parts:
        chosen = patterns.plan(crow_indices, col_indices, part.taps, select)
        weight = _blocks(values, col_indices).index_select(0, chosen.kept), *chosen.pattern
        launch(part.of_input(out), part.of_output(grad), *weight, part.shape)
    return out


def grad_weight(
    launch: Launch,
    parts: Parts,
    out: Tensor,
    x: Tensor,
    grad: Tensor,
    crow_indices: Tensor,
    col_indices: Tensor,
) -> Tensor:
    """As sparse_conv2d_grad_weight, with `launch` for each part: of dead taps it is 0."""
    out.zero_()
    for part in parts.parts:
        chosen = patterns.plan(crow_indices, col_indices, part.taps, select)
        blocks = _blocks(out, col_indices)
        found = out.new_empty(chosen.kept.numel() * blocks.shape[1])
        launch(found, part.of_input(x), part.of_output(grad), *chosen.pattern, part.shape)
        blocks.index_copy_(0, chosen.kept, found.view(-1, blocks.shape[1]))
    return out


def _blocks(values: Tensor, col_indices: Tensor) -> Tensor:
    """[blocks, block_size], a view where that is possible."""
    blocks = col_indices.numel()
    return values.reshape(blocks, values.numel() // max(blocks, 1) or 1)
