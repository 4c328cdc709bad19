"""What passes by windows have in common for the cost model: csrc/cuda/conv/window_list.h."""

from __future__ import annotations

import os

from dsr_kernels.backends.cuda.passes import PassShape
from dsr_kernels.backends.cuda.window_lists import STEP, WINDOW, whole_rows

SWITCH = "DSR_GPU_TENSOR_CORES"  # environment variable
FEWEST_ROWS = 8  # destination channels of a group: below that a window is mostly empty
# What things cost. None of it was measured.
MATRICES = 4.0  # wavefronts of a load of four matrices
CONFLICTS = 1.1  # wavefronts per wavefront's worth of entries, whose banks the list spreads
MULTIPLY_ADD = 2.0  # clocks of a matrix instruction on a multiprocessor: 1,024 products in each


def wanted() -> bool:
    """Whether the user asks for windows: no GPU has run them yet, so they are not the default."""
    asked = os.environ.get(SWITCH, "0")
    if asked not in ("0", "1"):
        raise ValueError(f"the environment variable {SWITCH}: expected 0 or 1, got {asked!r}")
    return asked == "1"


def possible(shape: PassShape, element_size: int) -> bool:
    return element_size == 2 and shape.dest_channels >= FEWEST_ROWS


def whole_rows_of(shape: PassShape, block_size: int) -> int:
    """Of a block that stay together in one window or slab."""
    return whole_rows(
        block_size, shape.source_channels if shape.transposed else shape.dest_channels
    )


def entries_met(shape: PassShape, density: float, block_size: int) -> float:
    """The share of a window's (source channel, tap) pairs at which it has a non-zero."""
    rows = min(WINDOW, shape.dest_channels)
    if not shape.transposed:  # else blocks lie along source channels
        rows = -(-rows // whole_rows_of(shape, block_size))
    return 1 - (1 - density) ** rows


def worth_a_list(shape: PassShape, channels: int, density: float, block_size: int) -> bool:
    """Whether the list has about as many entries as there are, though segments fill up steps."""
    if channels == shape.source_channels:
        return True
    return channels * shape.taps * entries_met(shape, density, block_size) >= STEP / 2
