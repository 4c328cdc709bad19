"""A GPU pass as the kernels take it: native structs, filled with its sizes and strides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from dsr_kernels.backends import native
from dsr_kernels.backends.cuda.layout import VECTOR_BYTES, Layout
from dsr_kernels.backends.cuda.lists import DirectKey, ListKey
from dsr_kernels.backends.cuda.passes import PassClass, PassShape
from dsr_kernels.backends.cuda.tiling import (
    Device,
    GatherTiling,
    GradWeightTiling,
    choose_gather,
    choose_grad_weight,
)


@dataclass(frozen=True)
class GatherPass:
    key: ListKey
    dtype: str
    launches: tuple[native._cuda.Gather, ...]
    clocks: float  # modelled


@dataclass(frozen=True)
class GradWeightPass:
    key: ListKey
    dtype: str
    splits: int
    launch: native._cuda.GradWeight
    unmet: tuple[bool, ...]
    clocks: float  # modelled


@dataclass(frozen=True)
class DirectPass:
    key: DirectKey
    dtype: str
    launches: tuple[native._cuda.Direct, ...]  # one per class
    unmet: tuple[bool, ...]  # [KH * KW]: the taps that meet only padding; () if there are none


def prepare_gather(
    shape: PassShape,
    images: int,
    density: float,
    dtype: torch.dtype,
    source_strides: tuple[int, ...],
    dest_strides: tuple[int, ...],
    device: Device,
) -> GatherPass | DirectPass:
    """The launches of a forward or grad-input pass: with slabs where they fit, else direct."""
    shape, source_strides, dest_strides = as_columns(shape, source_strides, dest_strides)
    tiling = _slab_tiling(choose_gather, shape, images, density, dtype, device)
    if tiling is None:
        return _direct(shape, images, dtype, source_strides, dest_strides)
    key = list_key(shape, tiling.channel_block, tiling.layouts)
    strides = source_strides, dest_strides
    launches = gather_launches(shape, images, tiling, key, shape.dest_channels, strides, device)
    return GatherPass(key, _name(dtype), launches, tiling.clocks)


def gather_launches(
    shape: PassShape,
    images: int,
    tiling: GatherTiling,
    key: ListKey,
    segments: int,  # of a class, block of source channels and group
    strides: tuple[tuple[int, ...], tuple[int, ...]],  # of source and destination
    device: Device,
) -> tuple[native._cuda.Gather, ...]:
    numbered = list(enumerate(zip(shape.classes, tiling.layouts, strict=True)))
    most = native._C.cuda_limits.MAX_CLASSES
    launches = []
    for first in range(0, len(numbered), most):
        launch = native._cuda.Gather()
        set_channels(launch, shape, tiling.channel_block)
        launch.row_warps, launch.rows, launch.units = tiling.row_warps, tiling.rows, tiling.units
        launch.transposed = shape.transposed
        launch.dest_step_h, launch.dest_step_w = shape.dest_step_h, shape.dest_step_w
        launch.lanes_on_channels = channels_contiguous(shape, strides[0])
        launch.slab_bytes = slab_bytes(tiling.channel_block, tiling.layouts)
        launch.blocks_limit = device.multiprocessors
        launch.source_strides, launch.dest_strides = strides
        part, tiles = numbered[first : first + most], 0
        for slot, (index, (c, layout)) in enumerate(part):
            one = native._cuda.GatherClass()
            one.slab = native_slab(shape, c, layout, images)
            one.dest_h, one.dest_w = c.dest_h, c.dest_w
            one.blocks = key.blocks if c.taps else 0
            one.first_segment = index * key.blocks * shape.groups * segments
            one.first_tile = tiles
            launch.set_class(slot, one)
            tiles += layout.tiles
        launch.class_count, launch.tiles = len(part), tiles
        launches.append(launch)
    return tuple(launches)


def prepare_grad_weight(
    shape: PassShape,
    images: int,
    density: float,
    dtype: torch.dtype,
    source_strides: tuple[int, ...],
    grad_strides: tuple[int, ...],
    device: Device,
) -> GradWeightPass | DirectPass:
    """The launch of a grad-weight pass: with slabs where they fit, else direct."""
    shape, source_strides, grad_strides = as_columns(shape, source_strides, grad_strides)
    tiling = _slab_tiling(choose_grad_weight, shape, images, density, dtype, device)
    if tiling is None:
        return _direct(shape, images, dtype, source_strides, grad_strides)
    layouts = (tiling.layout,)
    key = list_key(shape, tiling.channel_block, layouts)
    launch = native._cuda.GradWeight()
    set_channels(launch, shape, tiling.channel_block)
    launch.slab = native_slab(shape, shape.classes[0], tiling.layout, images)
    launch.blocks, launch.tiles = key.blocks, tiling.layout.tiles
    launch.tiles_per_split, launch.splits = tiling.tiles_per_split, tiling.splits
    launch.units, launch.row_block = tiling.units, tiling.row_block
    launch.lanes_on_channels = channels_contiguous(shape, source_strides)
    launch.slab_bytes = slab_bytes(tiling.channel_block, layouts)
    launch.source_strides, launch.grad_strides = source_strides, grad_strides
    unmet, clocks = unmet_taps(key), tiling.clocks
    return GradWeightPass(key, _name(dtype), tiling.splits, launch, unmet, clocks)


Tiling = TypeVar("Tiling", GatherTiling, GradWeightTiling)


def _slab_tiling(
    choose: Callable[[PassShape, int, float, int, Device], Tiling | None],
    shape: PassShape,
    images: int,
    density: float,
    dtype: torch.dtype,
    device: Device,
) -> Tiling | None:
    """The tiling that `choose` finds; None where the direct kernels are to run.

    Those do float64, slabs that do not fit, and patterns so sparse that most segments of a list
    would be empty: it would be longer than the non-zeros.
    """
    if dtype == torch.float64:
        return None
    tiling = choose(shape, images, density, dtype.itemsize, device)
    if tiling is None or tiling.channel_block == shape.source_channels:
        return tiling
    return tiling if density * tiling.channel_block * shape.taps >= 0.5 else None


def as_columns(
    shape: PassShape, source_strides: tuple[int, ...], dest_strides: tuple[int, ...]
) -> tuple[PassShape, tuple[int, ...], tuple[int, ...]]:
    """A pointwise pass sees an image as one column of pixels where memory does.

    Tiles of such columns hold just the pixels they compute, and run on across images.
    """
    unchanged = shape, source_strides, dest_strides
    (only, *others), size = shape.classes, (shape.height, shape.width)
    steps = {shape.row_step, shape.col_step, shape.dest_step_h, shape.dest_step_w}
    pointwise = not others and shape.taps == 1 and steps == {1} and (only.rows, only.cols) == size
    if not pointwise or only.first_h or only.first_w or shape.width == 1:
        return unchanged
    (n, c, h, w), (dest_n, dest_c, dest_h, dest_w) = source_strides, dest_strides
    if h != shape.width * w or dest_h != shape.width * dest_w:
        return unchanged
    pixels = shape.height * shape.width
    column = PassClass(pixels, 1, 0, 0, 0, 0, only.taps)
    shape = dataclasses.replace(shape, height=pixels, width=1, classes=(column,))
    return shape, (n, c, w, w), (dest_n, dest_c, dest_w, dest_w)


def _direct(
    shape: PassShape,
    images: int,
    dtype: torch.dtype,
    source_strides: tuple[int, ...],
    dest_strides: tuple[int, ...],
) -> DirectPass:
    launches = []
    for index, c in enumerate(shape.classes):
        launch = native._cuda.Direct()
        launch.images, launch.height, launch.width = images, shape.height, shape.width
        launch.rows, launch.cols = c.rows, c.cols
        launch.dest_h, launch.dest_w = c.dest_h, c.dest_w
        launch.dest_step_h, launch.dest_step_w = shape.dest_step_h, shape.dest_step_w
        launch.row_step, launch.col_step = shape.row_step, shape.col_step
        launch.groups = shape.groups
        launch.dest_channels = shape.dest_channels
        launch.source_channels = shape.source_channels
        launch.first_segment = index * shape.groups * shape.dest_channels
        launch.source_strides, launch.dest_strides = source_strides, dest_strides
        launches.append(launch)
    by_tap = _by_tap(shape, lambda c, dh, dw: (c.first_h + dh, c.first_w + dw))
    key = DirectKey(*_pattern_fields(shape), *by_tap)
    return DirectPass(key, _name(dtype), tuple(launches), unmet_taps(key))


def list_key(shape: PassShape, channel_block: int, layouts: tuple[Layout, ...]) -> ListKey:
    layout_of = dict(zip(shape.classes, layouts, strict=True))

    def place(c: PassClass, dh: int, dw: int) -> tuple[int, int]:
        layout = layout_of[c]
        col = dw % shape.col_step * layout.phase_cols + dw // shape.col_step
        return (dh * layout.pitch + col) * VECTOR_BYTES, layout.plane * VECTOR_BYTES

    return ListKey(*_pattern_fields(shape), channel_block, *_by_tap(shape, place))


def _pattern_fields(shape: PassShape) -> tuple[bool, int, int, int, int, int]:
    """The first fields of both keys."""
    rows = shape.groups * (shape.source_channels if shape.transposed else shape.dest_channels)
    channels = shape.groups, shape.source_channels, shape.dest_channels
    return shape.transposed, rows, *channels, len(shape.classes) + 1


def unmet_taps(key: ListKey | DirectKey) -> tuple[bool, ...]:
    unmet = tuple(c == key.classes - 1 for c in key.tap_class)
    return unmet if any(unmet) else ()


def _by_tap(
    shape: PassShape, place: Callable[[PassClass, int, int], tuple[int, int]]
) -> tuple[tuple[int, ...], ...]:
    """Three tables [KH * KW]: the class a tap belongs to, and what `place` says of it."""
    # A tap that meets no destination pixel is put behind all classes, where no kernel looks.
    tables = [(len(shape.classes), 0, 0)] * shape.taps
    for index, c in enumerate(shape.classes):
        for tap, dh, dw in c.taps:
            tables[tap] = (index, *place(c, dh, dw))
    return tuple(zip(*tables, strict=True))


def set_channels(
    launch: native._cuda.Gather | native._cuda.GradWeight | native._cuda.WindowGradWeight,
    shape: PassShape,
    channel_block: int,
) -> None:
    launch.groups = shape.groups
    launch.dest_channels = shape.dest_channels
    launch.source_channels = shape.source_channels
    launch.channel_block = channel_block


def native_slab(shape: PassShape, c: PassClass, layout: Layout, images: int) -> native._cuda.Slab:
    slab = native._cuda.Slab()
    slab.rows, slab.cols = c.rows, c.cols
    slab.tile_cols, slab.chunks = layout.tile_cols, layout.chunks
    slab.height, slab.width = shape.height, shape.width
    slab.first_h, slab.first_w = c.first_h, c.first_w
    slab.row_step, slab.col_step = shape.row_step, shape.col_step
    slab.reach_rows, slab.image_rows = c.reach_h, layout.image_rows
    slab.slab_cols, slab.phase_cols = layout.slab_cols, layout.phase_cols
    slab.pitch, slab.plane = layout.pitch, layout.plane
    slab.images, slab.positions = images, layout.positions
    slab.prepare()
    return slab


def slab_bytes(channel_block: int, layouts: tuple[Layout, ...]) -> int:
    return channel_block * max(layout.plane for layout in layouts) * VECTOR_BYTES


def channels_contiguous(shape: PassShape, strides: tuple[int, ...]) -> bool:
    """Whether lanes that load side by side should be channels: no row or column is contiguous."""
    _, channel, row, col = strides
    along_cols = shape.width > 1 and col == 1
    along_rows = shape.width == 1 and shape.height > 1 and row == 1
    return channel == 1 and not along_cols and not along_rows


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
