"""What passes by windows have in common for the cost model: csrc/cuda/conv/window_list.h."""

from __future__ import annotations

import os

import torch

from dsr_kernels.backends.cuda.passes import PassShape
from dsr_kernels.backends.cuda.window_lists import STEP, WINDOW, whole_rows

SWITCH = "DSR_GPU_TENSOR_CORES"  # environment variable
FEWEST_ROWS = 8  # destination channels of a group: below that a window is mostly empty
# What things cost. None of it was measured.
MATRICES = 4.0  # wavefronts of a load of four matrices, or of as much word by word
CONFLICTS = 1.1  # wavefronts per wavefront's worth of entries, whose banks the list spreads
# Clocks of a matrix instruction on a multiprocessor: 1,024 products in each of 16 bits, 512 of
# TF32, of which an instruction has half as many.
MULTIPLY_ADD = 2.0
ROUND = 2.0  # clocks of a warp to round a register to TF32


def wanted() -> bool:
    """Whether the user asks for windows: no GPU has run them yet, so they are not the default."""
    asked = os.environ.get(SWITCH, "0")
    if asked not in ("0", "1"):
        raise ValueError(f"the environment variable {SWITCH}: expected 0 or 1, got {asked!r}")
    return asked == "1"


def tf32_allowed(maybe_linear: bool) -> bool:
    """Whether torch allows TF32 in convolutions and, `maybe_linear`, in matrix products, too.

    That is `torch.backends.cudnn.allow_tf32` and `torch.backends.cuda.matmul.allow_tf32`, whichever
    of torch's names for them they were set by.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    # torch 2.9 has other names, and refuses to read the older ones where they would not say all.
    if hasattr(cudnn, "conv"):
        asked = (cudnn.conv, matmul) if maybe_linear else (cudnn.conv,)
        return all(setting.fp32_precision == "tf32" for setting in asked)
    return bool(cudnn.allow_tf32 and (matmul.allow_tf32 or not maybe_linear))


def rounding(registers: int, element_size: int) -> float:
    """Clocks of a warp to round what so many registers have of the slabs."""
    return registers * ROUND if element_size == 4 else 0.0


def possible(shape: PassShape, element_size: int) -> bool:
    return element_size <= 4 and shape.dest_channels >= FEWEST_ROWS


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
