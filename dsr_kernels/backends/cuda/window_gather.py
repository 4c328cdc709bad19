"""Forward and grad-input by matrix units, how they are cut: csrc/cuda/conv/window_gather.h.

As in `tiling`, the unit of cost is a wavefront of shared memory, a clock. A step of 16 entries
costs the same however few non-zeros it has. So it is cheap where the rows of a window share their
entries: in blocks of output channels, or where there are many non-zeros.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dsr_kernels.backends import native
from dsr_kernels.backends.cuda.layout import VECTOR_BYTES, Layout, fill_cost, possible_layouts
from dsr_kernels.backends.cuda.lists import ListKey
from dsr_kernels.backends.cuda.passes import PassClass, PassShape
from dsr_kernels.backends.cuda.prepare import (
    DirectPass,
    GatherPass,
    as_columns,
    gather_launches,
    list_key,
)
from dsr_kernels.backends.cuda.tiling import (
    COMPUTE_WARPS,
    ROW_WARPS,
    STEP,
    Device,
    GatherTiling,
    channel_blocks,
    fill_clocks,
)
from dsr_kernels.backends.cuda.window_costs import (
    CONFLICTS,
    MATRICES,
    MULTIPLY_ADD,
    entries_met,
    possible,
    rounding,
    whole_rows_of,
    worth_a_list,
)
from dsr_kernels.backends.cuda.window_lists import STEP as ENTRIES
from dsr_kernels.backends.cuda.window_lists import WINDOW, windows_of
from dsr_kernels.backends.native import _C

UNITS = _C.cuda_limits.WINDOW_UNITS  # positions of a warp
FLOAT_UNITS = 8  # the only ones of float32: four pairs of positions that are 4 apart
# What things cost, beside window_costs. None of it was measured.
# Wavefronts of putting the weights of a step together, and loading them: in float32 the tile has
# twice as many bytes, which are cleared, stored and loaded.
DECODE = {2: 24.0, 4: 36.0}
STEP_ALONE = 120.0  # clocks of a warp for a step, with nobody else at work,
UNIT_ALONE = 16.0  # and for each of its positions
SECTOR = 0.5  # clocks to store what is contiguous, at most 32 bytes


@dataclass(frozen=True)
class WindowGatherPass:
    key: ListKey
    dtype: str
    launches: tuple[native._cuda.Gather, ...]


@functools.lru_cache(maxsize=1024)
def choose_window_gather(
    shape: PassShape,
    images: int,
    density: float,
    block_size: int,
    element_size: int,
    device: Device,
) -> GatherTiling | None:
    """The cheapest of `window_gather_tilings`; None if there is none."""
    tilings = window_gather_tilings(shape, images, density, block_size, element_size, device)
    return min(tilings, key=lambda tiling: tiling.clocks, default=None)


def window_gather_tilings(
    shape: PassShape,
    images: int,
    density: float,
    block_size: int,
    element_size: int,
    device: Device,
) -> Iterator[GatherTiling]:
    """What a forward or grad-input pass by windows can do, with its modelled time."""
    if not possible(shape, element_size):
        return
    windows = -(-shape.dest_channels // WINDOW)
    tiles = COMPUTE_WARPS * WINDOW * ENTRIES * element_size  # the warps' weights of a step
    room = device._replace(shared_per_block=device.shared_per_block - tiles)
    met = entries_met(shape, density, block_size)
    for units in units_of(element_size):
        for row_warps in ROW_WARPS:
            if row_warps > 1 and row_warps >= 2 * windows:
                continue
            tile = COMPUTE_WARPS // row_warps * units
            # Entries have banks of their own, whatever the pixels: only what is filled counts. But
            # words of float32 are loaded at two positions at once.
            served = 0.0 if element_size == 2 else met * min(row_warps, windows)
            layouts = possible_layouts(shape, images, tile, element_size, served)
            if not layouts:
                continue
            plane = max(layout.plane for layout in layouts) * VECTOR_BYTES
            for most in channel_blocks(shape.source_channels, plane, room):
                channels = _whole_blocks(shape, most, block_size)
                if not worth_a_list(shape, channels, density, block_size):
                    continue
                tiling = GatherTiling(WINDOW, units, row_warps, channels, layouts, 0.0)
                clocks = _clocks(shape, tiling, density, block_size, element_size, device)
                yield dataclasses.replace(tiling, clocks=clocks)


def units_of(element_size: int) -> tuple[int, ...]:
    """Positions of a warp that there are kernels of."""
    return UNITS if element_size == 2 else (FLOAT_UNITS,)


def _whole_blocks(shape: PassShape, channels: int, block_size: int) -> int:
    """Source channels of a slab that cut no block of a transposed pattern, if there is room."""
    size = whole_rows_of(shape, block_size)
    if not shape.transposed or channels == shape.source_channels or channels < size:
        return channels
    return channels // size * size


def _clocks(
    shape: PassShape,
    tiling: GatherTiling,
    density: float,
    block_size: int,
    element_size: int,
    device: Device,
) -> float:
    windows = -(-shape.dest_channels // WINDOW)
    row_blocks = -(-windows // tiling.row_warps) * shape.groups
    items = row_blocks * sum(layout.tiles for layout in tiling.layouts)
    met = entries_met(shape, density, block_size)
    work = sum(
        layout.tiles * _item(shape, c, layout, tiling, met, element_size)
        for c, layout in zip(shape.classes, tiling.layouts, strict=True)
    )
    rounds = -(-items // device.multiprocessors)
    first = fill_clocks(tiling.layouts[0], tiling.channel_block, element_size)
    return work * row_blocks / items * rounds + first


def _item(
    shape: PassShape,
    c: PassClass,
    layout: Layout,
    tiling: GatherTiling,
    met: float,
    element_size: int,
) -> float:
    """Clocks of an item of work, all of its blocks of source channels together."""
    windows = min(tiling.row_warps, -(-shape.dest_channels // WINDOW))
    warps = windows * (COMPUTE_WARPS // tiling.row_warps)
    rows = min(windows * WINDOW, shape.dest_channels)
    outputs = rows * (COMPUTE_WARPS // tiling.row_warps) * tiling.units
    run = _run(shape, c, layout, tiling.units * 2 // element_size)
    stores = outputs * VECTOR_BYTES / element_size * SECTOR / run
    if not c.taps:
        return stores + STEP
    blocks = -(-shape.source_channels // tiling.channel_block)
    steps = shape.source_channels * len(c.taps) * met / ENTRIES + blocks / 2  # of a window
    conflicts = CONFLICTS if element_size == 2 else CONFLICTS * layout.conflicts
    loads = warps * steps * (tiling.units / 2 * MATRICES * conflicts + DECODE[element_size])
    multiplied = warps * steps * tiling.units * MULTIPLY_ADD
    unit_alone = UNIT_ALONE + rounding(2, element_size)
    alone = steps * (STEP_ALONE + unit_alone * tiling.units)
    filled = fill_clocks(layout, shape.source_channels, element_size)
    together = loads + fill_cost(layout, shape.source_channels, element_size)
    return max(together, multiplied, alone, filled) + stores + blocks * STEP


def _run(shape: PassShape, c: PassClass, layout: Layout, units: int) -> int:
    """How many of a lane's `units` positions one store takes, of rows that are contiguous."""
    column = c.cols == 1
    if (shape.dest_step_h if column else shape.dest_step_w) != 1:
        return 1
    line = c.rows if column else math.gcd(c.cols, layout.tile_cols)
    return math.gcd(line, units)


def _far_apart(
    shape: PassShape, units: int, element_size: int, dest_strides: tuple[int, ...]
) -> bool:
    """Whether the positions of a warp may be further apart than 32 bits count.

    Where images are of few pixels, each of them is of other images.
    """
    images = VECTOR_BYTES // element_size  # of a position
    n, _, h, w = map(abs, dest_strides)
    rows = max(c.dest_h + c.rows * shape.dest_step_h for c in shape.classes)
    cols = max(c.dest_w + c.cols * shape.dest_step_w for c in shape.classes)
    return images * units * n + rows * h + cols * w >= 2**31


def prepare_windows(
    shape: PassShape,
    images: int,
    density: float,
    block_size: int,
    dtype: torch.dtype,
    source_strides: tuple[int, ...],
    dest_strides: tuple[int, ...],
    device: Device,
    instead: GatherPass | DirectPass,
) -> GatherPass | DirectPass | WindowGatherPass:
    """The launches of a forward or grad-input pass by windows, or `instead` where it is cheaper."""
    shape, source_strides, dest_strides = as_columns(shape, source_strides, dest_strides)
    tiling = choose_window_gather(shape, images, density, block_size, dtype.itemsize, device)
    if tiling is None or _far_apart(shape, tiling.units, dtype.itemsize, dest_strides):
        return instead
    if isinstance(instead, GatherPass) and instead.clocks <= tiling.clocks:
        return instead
    key = list_key(shape, tiling.channel_block, tiling.layouts)
    strides = source_strides, dest_strides
    launches = gather_launches(shape, images, tiling, key, windows_of(key), strides, device)
    return WindowGatherPass(key, instead.dtype, launches)
