"""How a GPU pass is cut into tiles and blocks, by counting what its thread blocks do.

The unit of cost is a wavefront: what the shared memory of a multiprocessor moves in a clock, 128
bytes. A multiply-add of a warp needs one (half of one in low precision), so the wavefronts of the
busiest multiprocessor are the time of a pass that keeps up with its shared memory.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from dsr_kernels.backends.cuda.layout import VECTOR_BYTES, Layout, fill_cost, possible_layouts
from dsr_kernels.backends.cuda.passes import PassClass, PassShape
from dsr_kernels.backends.native import _C

# What the kernels are made for (csrc/cuda/conv/limits.h): the warps of a thread block, how many
# slabs it has, the (rows, units) and units of the instances by the bytes of an activation.
COMPUTE_WARPS = _C.cuda_limits.COMPUTE_WARPS
FILL_WARPS, FILL_BATCH = _C.cuda_limits.FILL_WARPS, _C.cuda_limits.FILL_BATCH
SLABS = _C.cuda_limits.SLABS
GATHER_VARIANTS = _C.cuda_limits.GATHER_VARIANTS
GRAD_WEIGHT_UNITS = _C.cuda_limits.GRAD_WEIGHT_UNITS
ROW_WARPS = tuple(1 << i for i in range(COMPUTE_WARPS.bit_length()))  # side by side along channels
# What things cost, as measured.
SEGMENT = 30.0  # clocks of a warp to begin a row of a block, beside other warps' work
ROW = 700.0  # clocks of a warp to begin an output channel of a grad-weight, alone
LATENCY = 900.0  # clocks of a load from memory
STEP = 800.0  # clocks from one slab to the next that belong to no wavefront


class Device(NamedTuple):
    """What the choice depends on."""

    multiprocessors: int
    shared_per_block: int  # bytes a block may have


@dataclass(frozen=True)
class GatherTiling:
    rows: int
    units: int
    row_warps: int
    channel_block: int
    layouts: tuple[Layout, ...]  # of the classes
    clocks: float  # modelled


@dataclass(frozen=True)
class GradWeightTiling:
    units: int
    channel_block: int
    row_block: int  # output channels of a thread block
    tiles_per_split: int
    layout: Layout
    clocks: float

    @property
    def splits(self) -> int:
        """Parts of the positions that are summed apart; none is empty."""
        return -(-self.layout.tiles // self.tiles_per_split)


@functools.lru_cache(maxsize=1024)
def choose_gather(
    shape: PassShape, images: int, density: float, element_size: int, device: Device
) -> GatherTiling | None:
    """The cheapest of `gather_tilings`; None if no slab fits shared memory."""
    tilings = gather_tilings(shape, images, density, element_size, device)
    return min(tilings, key=lambda tiling: tiling.clocks, default=None)


@functools.lru_cache(maxsize=1024)
def choose_grad_weight(
    shape: PassShape, images: int, density: float, element_size: int, device: Device
) -> GradWeightTiling | None:
    """The cheapest of `grad_weight_tilings`; None if no slab fits shared memory."""
    tilings = grad_weight_tilings(shape, images, density, element_size, device)
    return min(tilings, key=lambda tiling: tiling.clocks, default=None)


def gather_tilings(
    shape: PassShape, images: int, density: float, element_size: int, device: Device
) -> Iterator[GatherTiling]:
    """What a forward or grad-input pass can do, with its modelled time."""
    for (rows, units), row_warps in _gather_variants(shape.dest_channels, element_size):
        tile = COMPUTE_WARPS // row_warps * units * 32
        served = min(rows * row_warps, shape.dest_channels)
        layouts = possible_layouts(shape, images, tile, element_size, served * density)
        if not layouts:
            continue
        row_blocks = -(-shape.dest_channels // (rows * row_warps)) * shape.groups
        items = row_blocks * sum(layout.tiles for layout in layouts)
        rounds = -(-items // device.multiprocessors)
        plane = max(layout.plane for layout in layouts) * VECTOR_BYTES
        for channels in channel_blocks(shape.source_channels, plane, device):
            tiling = GatherTiling(rows, units, row_warps, channels, layouts, 0.0)
            work = sum(
                layout.tiles * _gather_item(shape, c, layout, tiling, density, element_size)
                for c, layout in zip(shape.classes, layouts, strict=True)
            )
            first = fill_clocks(layouts[0], channels, element_size)
            clocks = work * row_blocks / items * rounds + first
            yield dataclasses.replace(tiling, clocks=clocks * _crowding(channels * plane))


def grad_weight_tilings(
    shape: PassShape, images: int, density: float, element_size: int, device: Device
) -> Iterator[GradWeightTiling]:
    """What a grad-weight pass can do, with its modelled time."""
    (only,) = shape.classes
    nonzeros = density * shape.dest_channels * len(only.taps)  # per source channel
    for units in GRAD_WEIGHT_UNITS[element_size]:
        served = density * shape.dest_channels
        layouts = possible_layouts(shape, images, units * 32, element_size, served)
        if not layouts:
            continue
        (layout,) = layouts
        for channels in channel_blocks(shape.source_channels, layout.plane * VECTOR_BYTES, device):
            blocks = -(-shape.source_channels // channels) * shape.groups
            fill = fill_cost(layout, channels, element_size)
            first = fill_clocks(layout, channels, element_size)
            for wanted in (1, 2, 4, 8):  # parts of the output channels, where positions are few
                rows = -(-shape.dest_channels // wanted)
                loads = rows / shape.dest_channels * channels * nonzeros
                per_tile = loads * (units * 4 * layout.conflicts + 2.5) + fill
                per_tile += rows * (units * VECTOR_BYTES // element_size + SEGMENT / 2)
                per_tile = max(per_tile, first, rows / COMPUTE_WARPS * ROW) + STEP
                parts = blocks * -(-shape.dest_channels // rows)
                for waves in (1, 2, 4):
                    splits = max(1, min(layout.tiles, device.multiprocessors * waves // parts))
                    tiles = -(-layout.tiles // splits)
                    tiling = GradWeightTiling(units, channels, rows, tiles, layout, 0.0)
                    rounds = -(-parts * tiling.splits // device.multiprocessors)
                    clocks = (per_tile * tiles + first / 2) * rounds
                    clocks += (
                        tiling.splits * blocks * channels * nonzeros * 4 / 1000
                    )  # partial sums
                    clocks *= _crowding(channels * layout.plane * VECTOR_BYTES)
                    yield dataclasses.replace(tiling, clocks=clocks)


def _gather_variants(
    dest_channels: int, element_size: int
) -> Iterator[tuple[tuple[int, int], int]]:
    for rows, units in GATHER_VARIANTS[element_size]:
        for row_warps in ROW_WARPS:
            if row_warps == 1 or row_warps * rows < 2 * dest_channels:
                yield (rows, units), row_warps


def _gather_item(
    shape: PassShape,
    c: PassClass,
    layout: Layout,
    tiling: GatherTiling,
    density: float,
    element_size: int,
) -> float:
    """Clocks of an item of work, all of its blocks of source channels together."""
    served = min(tiling.rows * tiling.row_warps, shape.dest_channels)  # destination channels
    lanes = COMPUTE_WARPS // tiling.row_warps * tiling.units  # vectors of positions
    stores = served * lanes * VECTOR_BYTES / element_size
    if not c.taps:
        return stores + STEP
    nonzeros = served * shape.source_channels * len(c.taps) * density
    loads = nonzeros * (lanes * 4 * layout.conflicts + COMPUTE_WARPS / tiling.row_warps)
    loads *= 1.15 if tiling.units == 1 else 1.0  # as measured: fewer loads in flight
    blocks = -(-shape.source_channels // tiling.channel_block)
    loads += blocks * tiling.rows * COMPUTE_WARPS * SEGMENT / 4
    filled = fill_clocks(layout, shape.source_channels, element_size)
    together = loads + fill_cost(layout, shape.source_channels, element_size)
    return max(together, filled) + stores + blocks * STEP


def _crowding(slab: int) -> float:
    """What it costs, as measured, that two slabs leave the lists no room in the cache."""
    return 1.08 if SLABS * slab > 180_000 else 1.0


def fill_clocks(layout: Layout, channels: int, element_size: int) -> float:
    """Clocks that the filling warps alone take: to issue, or for what they have in flight."""
    return vectors_clocks(-(-layout.pixels // 32) * channels / FILL_WARPS, element_size)


def vectors_clocks(vectors: float, element_size: int) -> float:
    """Clocks that a filling warp takes, of which each lane brings so many vectors."""
    if element_size == 4:
        return vectors * 60 + LATENCY
    return vectors / FILL_BATCH * LATENCY


def channel_blocks(channels: int, plane: int, device: Device) -> Iterator[int]:
    """Source channels of a slab, SLABS of which must fit shared memory."""
    most = min(device.shared_per_block // SLABS // plane, channels)
    if most < 1:
        return
    fewest = -(-channels // most)
    for blocks in {fewest, max(fewest, 2), max(fewest, 4)}:
        even = -(-channels // blocks)
        wide = -(-even // FILL_WARPS) * FILL_WARPS  # whole rounds of the warps that fill
        yield min(wide, most)
