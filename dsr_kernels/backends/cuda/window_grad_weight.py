"""Grad-weight by matrix units, how it is cut: csrc/cuda/conv/window_grad_weight.h.

As in `tiling`, the unit of cost is a wavefront of shared memory, a clock. What a step of 16 entries
costs depends on how many (source channel, tap) pairs a window has, not on its non-zeros. So it is
cheap where rows share them: in blocks of output channels, or where there are many non-zeros.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dsr_kernels.backends import native
from dsr_kernels.backends.cuda.layout import VECTOR_BYTES, Layout, fill_cost, possible_layouts
from dsr_kernels.backends.cuda.lists import ListKey
from dsr_kernels.backends.cuda.passes import PassShape
from dsr_kernels.backends.cuda.prepare import (
    DirectPass,
    GradWeightPass,
    as_columns,
    channels_contiguous,
    list_key,
    native_slab,
    set_channels,
    slab_bytes,
    unmet_taps,
)
from dsr_kernels.backends.cuda.tiling import (
    COMPUTE_WARPS,
    FILL_WARPS,
    STEP,
    Device,
    channel_blocks,
    vectors_clocks,
)
from dsr_kernels.backends.cuda.window_costs import (
    CONFLICTS,
    MATRICES,
    MULTIPLY_ADD,
    entries_met,
    possible,
    rounding,
    worth_a_list,
)
from dsr_kernels.backends.cuda.window_lists import STEP as ENTRIES
from dsr_kernels.backends.cuda.window_lists import WINDOW

WARPS = COMPUTE_WARPS + FILL_WARPS
COMPUTE = (8, 12, 16)  # warps that compute; the others fill
TILES = (32, 64, 128, 256)  # positions
# csrc/cuda/conv/window_grad_weight.cuh: steps that a warp does at once, and how many times as many
# it has sums for in its registers.
TURN_STEPS, HELD_TURNS = 2, 2
SCRATCH_BYTES = ENTRIES * WINDOW * 4  # of a computing warp
# What things cost, beside window_costs. None of it was measured.
PAIR = 50.0  # clocks of a warp for two positions, with nobody else at work
KEEP = 20.0  # wavefronts of a step whose sums change places and are added to those before,
KEEP_SECTOR = 1.0  # of 32 bytes of values, which a piece has to itself, from memory and back,
KEEP_ALONE = 1500.0  # and clocks of a warp for a turn of which nothing stays in registers


@dataclass(frozen=True)
class WindowGradWeightTiling:
    tile: int  # positions
    compute_warps: int
    grad_warps: int  # of the others, which fill: those that bring the gradient
    window_block: int  # windows of a thread block
    channel_block: int
    tiles_per_split: int
    layout: Layout
    clocks: float

    @property
    def splits(self) -> int:
        """Parts of the positions that are summed apart; none is empty."""
        return -(-self.layout.tiles // self.tiles_per_split)


@dataclass(frozen=True)
class WindowGradWeightPass:
    key: ListKey
    dtype: str
    splits: int
    launch: native._cuda.WindowGradWeight
    unmet: tuple[bool, ...]


@functools.lru_cache(maxsize=1024)
def choose_window_grad_weight(
    shape: PassShape,
    images: int,
    density: float,
    block_size: int,
    element_size: int,
    device: Device,
) -> WindowGradWeightTiling | None:
    """The cheapest of `window_grad_weight_tilings`; None if there is none."""
    tilings = window_grad_weight_tilings(shape, images, density, block_size, element_size, device)
    return min(tilings, key=lambda tiling: tiling.clocks, default=None)


def window_grad_weight_tilings(
    shape: PassShape,
    images: int,
    density: float,
    block_size: int,
    element_size: int,
    device: Device,
) -> Iterator[WindowGradWeightTiling]:
    """What a grad-weight pass by windows can do, with its modelled time."""
    if not possible(shape, element_size):
        return
    windows = -(-shape.dest_channels // WINDOW)
    parts = {-(-windows // wanted) for wanted in (1, 2, 4, 8)}
    for tile in TILES:
        # Entries have banks of their own, whatever the pixels: only what is filled counts.
        layouts = possible_layouts(shape, images, tile, element_size, 0.0)
        for window_block in parts if layouts else ():
            for compute_warps in COMPUTE:
                beside = _beside(tile, window_block, compute_warps, shape)
                room = device._replace(shared_per_block=device.shared_per_block - beside)
                plane = layouts[0].plane * VECTOR_BYTES
                for channels in channel_blocks(shape.source_channels, plane, room):
                    if not worth_a_list(shape, channels, density, block_size):
                        continue
                    source = _source_vectors(layouts[0], channels)
                    fill_warps = WARPS - compute_warps
                    share = _grad_vectors(tile, window_block, shape)
                    share = round(fill_warps * share / (share + source))
                    grad_warps = min(max(1, share), fill_warps - 1)
                    warps = compute_warps, grad_warps
                    cut = WindowGradWeightTiling(
                        tile, *warps, window_block, channels, 1, layouts[0], 0.0
                    )
                    yield from _split(cut, shape, density, block_size, element_size, device)


def _beside(tile: int, window_block: int, compute_warps: int, shape: PassShape) -> int:
    """Bytes of shared memory beside the source's slabs."""
    rows = min(window_block * WINDOW, shape.dest_channels)
    return 2 * (rows * (tile | 1) * VECTOR_BYTES + tile * 4) + compute_warps * SCRATCH_BYTES


def _source_vectors(layout: Layout, channels: int) -> float:
    """Loads of a warp's lanes, of all images of a pixel, that fill the source's slab."""
    return -(-layout.pixels // 32) * channels


def _grad_vectors(tile: int, window_block: int, shape: PassShape) -> float:
    """And the gradient's."""
    return tile / 32 * min(window_block * WINDOW, shape.dest_channels)


def _split(
    cut: WindowGradWeightTiling,
    shape: PassShape,
    density: float,
    block_size: int,
    element_size: int,
    device: Device,
) -> Iterator[WindowGradWeightTiling]:
    """The tiling in splits of several lengths."""
    (only,) = shape.classes
    blocks = -(-shape.source_channels // cut.channel_block)
    windows = -(-shape.dest_channels // WINDOW)
    parts = blocks * shape.groups * -(-windows // cut.window_block)
    per_tile, first = _tile_clocks(cut, shape, density, block_size, element_size)
    values = density * len(only.taps) * shape.source_channels * shape.dest_channels * shape.groups
    tiles = cut.layout.tiles
    for waves in (1, 2, 4):
        splits = max(1, min(tiles, device.multiprocessors * waves // parts))
        tiling = dataclasses.replace(cut, tiles_per_split=-(-tiles // splits))
        rounds = -(-parts * tiling.splits // device.multiprocessors)
        clocks = (per_tile * tiling.tiles_per_split + first) * rounds
        clocks += tiling.splits * values * 4 / 1000  # partial sums
        yield dataclasses.replace(tiling, clocks=clocks)


def _tile_clocks(
    cut: WindowGradWeightTiling,
    shape: PassShape,
    density: float,
    block_size: int,
    element_size: int,
) -> tuple[float, float]:
    """Clocks of a tile, and of the first one's filling, which nobody computes beside."""
    (only,) = shape.classes
    windows = min(cut.window_block, -(-shape.dest_channels // WINDOW))
    rows = min(cut.window_block * WINDOW, shape.dest_channels)
    entries = cut.channel_block * len(only.taps) * entries_met(shape, density, block_size)
    steps = max(1.0, entries / ENTRIES + 0.5)  # of a window
    turns = windows * max(1.0, steps / TURN_STEPS + 0.25)
    pairs = cut.tile / 2
    loads = turns * pairs * (MATRICES + 0.25) + windows * steps * pairs * MATRICES * CONFLICTS
    multiplied = windows * steps * pairs * 2 * MULTIPLY_ADD
    kept = 0.0
    pair = PAIR + rounding(4 + 4 * TURN_STEPS, element_size)
    alone = -(-turns // cut.compute_warps) * pairs * pair
    if turns > HELD_TURNS * cut.compute_warps:  # else sums stay in registers from tile to tile
        values = density * cut.channel_block * len(only.taps) * rows
        kept = windows * steps * KEEP + values / min(block_size, 8) * KEEP_SECTOR
        alone += -(-turns // cut.compute_warps) * KEEP_ALONE
    of_grad = _grad_vectors(cut.tile, cut.window_block, shape)
    of_source = _source_vectors(cut.layout, cut.channel_block)
    lines = fill_cost(cut.layout, cut.channel_block, element_size)
    of_vector = VECTOR_BYTES / element_size
    lines += of_grad * ((4 * of_vector if element_size == 4 else 4) + 1.5 * of_vector)
    source_warps = WARPS - cut.compute_warps - cut.grad_warps
    most = max(of_grad / cut.grad_warps, of_source / source_warps)
    fill = vectors_clocks(most, element_size)
    return max(loads + kept + lines, multiplied, alone, fill) + STEP, fill


def prepare_windows(
    shape: PassShape,
    images: int,
    density: float,
    block_size: int,
    dtype: torch.dtype,
    source_strides: tuple[int, ...],
    grad_strides: tuple[int, ...],
    device: Device,
    instead: GradWeightPass | DirectPass,
) -> GradWeightPass | DirectPass | WindowGradWeightPass:
    """The launch of a grad-weight pass by windows, or `instead` where that costs less."""
    shape, source_strides, grad_strides = as_columns(shape, source_strides, grad_strides)
    tiling = choose_window_grad_weight(shape, images, density, block_size, dtype.itemsize, device)
    if tiling is None:
        return instead
    if isinstance(instead, GradWeightPass) and instead.clocks <= tiling.clocks:
        return instead
    layouts = (tiling.layout,)
    key = list_key(shape, tiling.channel_block, layouts)
    launch = native._cuda.WindowGradWeight()
    set_channels(launch, shape, tiling.channel_block)
    launch.slab = native_slab(shape, shape.classes[0], tiling.layout, images)
    launch.blocks, launch.tiles = key.blocks, tiling.layout.tiles
    launch.tile, launch.window_block = tiling.tile, tiling.window_block
    launch.compute_warps, launch.grad_warps = tiling.compute_warps, tiling.grad_warps
    launch.tiles_per_split, launch.splits = tiling.tiles_per_split, tiling.splits
    launch.source_lanes_on_channels = channels_contiguous(shape, source_strides)
    of_grad = dataclasses.replace(shape, height=shape.classes[0].rows, width=shape.classes[0].cols)
    launch.grad_lanes_on_channels = channels_contiguous(of_grad, grad_strides)
    launch.slab_bytes = slab_bytes(tiling.channel_block, layouts)
    launch.grad_plane = tiling.tile | 1
    launch.source_strides, launch.grad_strides = source_strides, grad_strides
    return WindowGradWeightPass(key, instead.dtype, tiling.splits, launch, unmet_taps(key))
