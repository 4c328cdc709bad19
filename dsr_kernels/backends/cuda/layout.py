"""How one class of a GPU pass lies in shared memory: csrc/cuda/conv/slab.h, and what that costs."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from dsr_kernels.backends.cuda.passes import PassClass, PassShape
from dsr_kernels.backends.native import _C

VECTOR_BYTES = _C.cuda_limits.VECTOR_BYTES
BANKS = 128 // VECTOR_BYTES  # columns of shared memory, each as wide as a vector
CHUNK_COLS = (4, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128)  # at most


@dataclass(frozen=True)
class Layout:
    """One class's slab: see csrc/cuda/conv/slab.h."""

    tile_cols: int
    chunks: int
    image_rows: int
    slab_cols: int
    phase_cols: int
    pitch: int
    plane: int
    positions: int
    tiles: int
    conflicts: float  # wavefronts per wavefront's worth of data

    @property
    def pixels(self) -> int:
        """Source pixels that are loaded for one tile and channel, margins included."""
        return self.plane // self.pitch * self.slab_cols


def fill_cost(layout: Layout, channels: int, element_size: int) -> float:
    """Wavefronts of filling a slab, whose vectors come image by image.

    Four-byte elements are stored one by one, four lanes to a bank; smaller ones as whole vectors.
    """
    images = VECTOR_BYTES / element_size
    # Lines of memory that 32 lanes touch in one image. Columns of one pixel lie side by side.
    lines = 0.5 + (max(1.0, 32 / layout.slab_cols) if layout.slab_cols > 1 else 1.0)
    stores = 4 * images if element_size == 4 else 4
    return -(-layout.pixels // 32) * channels * (stores + lines * images)


@functools.lru_cache(maxsize=4096)
def possible_layouts(
    shape: PassShape, images: int, tile: int, element_size: int, served: float
) -> tuple[Layout, ...]:
    """The classes' cheapest layouts: few margins, full tiles, long lines, no bank conflicts.

    None at all if there are more positions than the kernels count.

    `served`: the non-zeros that use a vector of a tap, over a thread block's destination channels.
    """
    groups = -(-images // (VECTOR_BYTES // element_size))
    steps = shape.row_step, shape.col_step

    def cheapest(c: PassClass) -> Layout:
        uses = served * max(1, len(c.taps))

        def cost(layout: Layout) -> float:
            computed = uses * tile / 32 * 4 * layout.conflicts
            return layout.tiles * (computed + fill_cost(layout, 1, element_size))

        widths = {-(-c.cols // -(-c.cols // most)) for most in CHUNK_COLS}
        options = [o for width in widths for o in options_of(c, steps, groups, tile, width)]
        return min(options, key=cost)

    most = max(groups * c.cols * ((c.rows - 1) * steps[0] + c.reach_h + 1) for c in shape.classes)
    return tuple(cheapest(c) for c in shape.classes) if 2 * most < 2**31 else ()


def options_of(
    c: PassClass, steps: tuple[int, int], groups: int, tile: int, width: int
) -> Iterator[Layout]:
    chunks = -(-c.cols // width)
    image_rows = (c.rows - 1) * steps[0] + c.reach_h + 1
    slab_cols = (width - 1) * steps[1] + c.reach_w + 1
    phase_cols = -(-slab_cols // steps[1])
    phases = min(steps[1], slab_cols)
    positions = groups * chunks * c.rows * width
    tiles = -(-positions // tile)
    rows = _most_rows(c, steps[0], image_rows, tile, width, groups * chunks)
    narrowest = phases * phase_cols
    by_conflicts: dict[float, int] = {}
    for pitch in range(narrowest, narrowest + BANKS):
        by_conflicts.setdefault(_conflicts(pitch * steps[0], tile, width), pitch)
    for conflicts, pitch in by_conflicts.items():
        plane = rows * pitch | 1  # odd: channels side by side fall into different banks
        yield Layout(
            width,
            chunks,
            image_rows,
            slab_cols,
            phase_cols,
            pitch,
            plane,
            positions,
            tiles,
            conflicts,
        )


def _most_rows(
    c: PassClass, row_step: int, image_rows: int, tile: int, width: int, images: int
) -> int:
    """Slab rows of the tile that spans most of them."""
    lines = images * c.rows
    if tile % width == 0:
        spanned, stride = tile // width, tile // width
    else:
        spanned, stride = (tile - 1) // width + 2, 1
    spanned = min(spanned, lines)

    def slab_row(line: int) -> int:
        return line // c.rows * image_rows + line % c.rows * row_step

    period = math.lcm(c.rows, stride)
    most = max(slab_row(line + spanned - 1) - slab_row(line) for line in range(0, period, stride))
    return min(most, slab_row(lines - 1)) + c.reach_h + 1


@functools.lru_cache(maxsize=4096)
def _conflicts(line_step: int, tile: int, width: int) -> float:
    """Wavefronts of a vector load by 8 lanes over whole tiles, 1.0 without bank conflicts."""
    size = min(math.lcm(tile, width, BANKS), 4096) // BANKS
    wavefronts = 0
    for first in range(0, size * BANKS, BANKS):
        banks = [0] * BANKS
        for position in range(first, first + BANKS):
            banks[(position // width * line_step + position % width) % BANKS] += 1
        wavefronts += max(banks)
    return wavefronts / size
