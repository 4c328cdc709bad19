"""Shared by the tests of the kernels: convolutions that between them reach every path, by lanes."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from helpers.nn_cases import layer, swap_pattern
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns

LANES = ("plane", "row", "batch")
VECTOR_BYTES = {"portable": 16, "avx2": 32, "avx512": 64}
# Those beyond are AVX-512's kernels with a matrix unit besides: test_matrix_kernels.py.
ISAS = [isa for isa in _C.available_isas() if isa in VECTOR_BYTES]

# C, O, kernel, (H, W) and the batch; further arguments of the layer after that. Between them: rows
# that fill a vector, several, or a share of one, exactly and not; batches below, at and beyond the
# lanes of a vector; even and odd numbers of channel blocks; several bands of rows; pixels that no
# tap reaches.
CASES = {
    "56 wide": ((6, 5, 3, (9, 56), 3), {"padding": 1}),
    "28 wide": ((20, 7, 3, (28, 28), 8), {"padding": 1}),
    "14 wide, 7 x 7": ((5, 9, 7, (14, 14), 16), {"padding": 3}),
    "7 wide": ((33, 6, 3, (7, 7), 17), {"padding": 1}),
    "65 wide": ((5, 6, 3, (4, 65), 16), {"padding": 1}),
    "32 wide, stride 2": ((6, 9, 3, (10, 32), 15), {"padding": 1, "stride": 2}),
    "stem": ((3, 8, 7, (19, 34), 3), {"padding": 3, "stride": 2}),
    "16 wide": ((9, 12, 3, (16, 16), 33), {"padding": 1, "sparsity": 0.9}),
    "16 wide, stride 2": ((9, 5, 3, (7, 16), 16), {"padding": 1, "stride": 2}),
    "8 wide": ((7, 5, 3, (8, 8), 100), {"padding": 1}),
    "8 wide, stride (2, 1)": ((8, 5, 3, (9, 8), 15), {"padding": 1, "stride": (2, 1)}),
    "4 wide": ((6, 17, 3, (4, 4), 33), {"padding": 1}),
    "5 wide, 1 x 3": ((4, 6, (1, 3), (3, 5), 1), {"padding": (0, 1)}),
    "13 wide, 5 x 2 'same'": ((5, 6, (5, 2), (6, 13), 3), {"padding": "same"}),
    "2 x 4 'same', dilated": ((5, 6, (2, 4), (9, 11), 8), {"padding": "same", "dilation": (3, 1)}),
    "stride 3": ((5, 6, 3, (11, 14), 16), {"padding": 1, "stride": 3}),
    "stride (4, 2) beyond the kernel": ((5, 6, 1, (11, 14), 16), {"stride": (4, 2)}),
    "stride (3, 2), 2 x 1": ((5, 6, (2, 1), (11, 15), 17), {"stride": (3, 2)}),
    "dilation": ((7, 6, 3, (9, 14), 8), {"padding": (2, 3), "dilation": (2, 3)}),
    "stride and dilation": ((7, 6, 3, (13, 12), 5), {"padding": 2, "stride": 2, "dilation": 2}),
    "groups": ((12, 18, 3, (6, 7), 15), {"padding": 1, "groups": 3, "sparsity": 0.5}),
    "depthwise": ((40, 40, 3, (7, 8), 16), {"padding": 1, "groups": 40, "sparsity": 0.3}),
    "blocks of channels": ((130, 70, 3, (5, 6), 17), {"padding": 1, "sparsity": 0.5}),
    "more blocks of channels": ((70, 130, 3, (6, 16), 1), {"padding": 1, "sparsity": 0.5}),
    "blocks and stride": ((130, 70, 3, (6, 7), 3), {"padding": 1, "stride": 2, "sparsity": 0.5}),
    "deep": ((700, 9, 3, (5, 16), 3), {"padding": 1, "sparsity": 0.5}),
    "deep gradient": ((9, 700, 3, (5, 16), 3), {"padding": 1, "sparsity": 0.9}),
    "bands of rows": ((200, 5, 3, (200, 16), 2), {"padding": 1, "sparsity": 0.9}),
    "bands of the gradient": ((5, 200, 3, (200, 16), 2), {"padding": 1, "sparsity": 0.9}),
    "bands and stride": ((160, 5, 3, (161, 30), 2), {"padding": 1, "stride": 2, "sparsity": 0.9}),
    "destination of width 1": ((9, 5, 3, (5, 3), 17), {}),
    "source of width 1": ((9, 5, 3, (5, 1), 17), {"padding": 1}),
    "source of width 1, stride 2": ((4, 5, 3, (5, 1), 3), {"padding": 1, "stride": 2}),
    "kernel wider than the image": ((4, 5, 7, (3, 3), 15), {"padding": 3}),
    "empty rows": ((6, 40, 3, (7, 7), 16), {"padding": 1, "sparsity": 0.99}),
    "rows of taps that meet only padding": (
        (6, 9, 3, (8, 8), 15),
        {"padding": (9, 1), "dilation": (9, 1), "sparsity": 0.5},
    ),
    "outputs that meet only padding": (
        (5, 6, (2, 3), (4, 4), 16),
        {"padding": (25, 1), "dilation": (25, 1), "sparsity": 0.5},
    ),
    "1 x 1, stride 2": ((20, 8, 1, (8, 10), 17), {"stride": 2}),
    "1 x 1, padded": ((20, 8, 1, (5, 6), 15), {"padding": (1, 2)}),
    "1 x 1": ((37, 21, 1, (6, 7), 15), {}),
}

# For GPUs. Vectors are of 4 or 8 images, so batches around those; then what tiles, shared memory
# and the launch's classes of a stride divide badly.
BATCHES = {
    f"{n} images": ((7, 13, 3, (9, 11), n), {"padding": 1})
    for n in (1, 2, 3, 4, 5, 7, 8, 9, 31, 129)
}
AWKWARD = {
    "129 images, stride 2": ((5, 17, 3, (15, 13), 129), {"padding": 1, "stride": 2}),
    "stride (3, 3), 5 x 5": ((6, 7, 5, (23, 19), 5), {"padding": 2, "stride": 3}),
    "stride (2, 1), 1 x 7": ((6, 7, (1, 7), (9, 20), 3), {"padding": (0, 3), "stride": (2, 1)}),
    "stride (1, 4)": ((3, 5, 3, (7, 26), 9), {"padding": 1, "stride": (1, 4)}),
    "stride 5 beyond the kernel": ((3, 5, 3, (17, 19), 3), {"padding": 1, "stride": 5}),
    "31 x 31, dilated by 3": (
        (2, 3, 31, (20, 17), 2),
        {"padding": 45, "dilation": 3, "sparsity": 0.97},
    ),
    "dilated by 40": ((2, 3, 3, (90, 83), 2), {"padding": 40, "dilation": 40}),
    "one row of 5000": ((3, 4, (1, 3), (1, 5000), 3), {"padding": (0, 1)}),
    "one column of 5000": ((3, 4, (3, 1), (5000, 1), 3), {"padding": (1, 0)}),
    "300 x 301": ((2, 3, 3, (300, 301), 1), {"padding": 1}),
    "2000 channels": ((2000, 3, 1, (3, 5), 5), {"sparsity": 0.9}),
    "2000 outputs": ((3, 2000, 1, (3, 5), 5), {"sparsity": 0.8}),
    "a long row among empty ones": ((600, 4, 3, (5, 5), 5), {"padding": 1, "sparsity": 0.995}),
    "wide groups": ((66, 34, 3, (6, 7), 9), {"padding": 1, "groups": 2, "sparsity": 0.8}),
    "depthwise, stride 2": (
        (33, 33, 3, (9, 11), 9),
        {"padding": 1, "stride": 2, "groups": 33, "sparsity": 0.4},
    ),
    "1 x 1, stride 3": ((9, 5, 1, (10, 8), 5), {"stride": 3}),
    "1 x 1, stride (2, 1), one row": ((9, 5, 1, (1, 8), 5), {"stride": (2, 1)}),
    "columns that no tap reads": (
        (6, 5, (3, 1), (9, 20), 9),
        {"padding": (1, 0), "stride": (1, 3)},
    ),
}


def conv_and_input(
    name: str, dtype: torch.dtype = torch.float32, cases: dict = CASES, block_size: int = 1
) -> tuple[SparseConv2d, Tensor]:
    """With a block size, of at least as many output channels as the case says."""
    (c, o, kernel, size, n), rest = in_blocks(cases[name], block_size)
    conv = layer(c, o, kernel, dtype=dtype, seed=3, **{"sparsity": 0.7, **rest})
    return conv, torch.randn(n, c, *size, dtype=dtype, generator=torch.Generator().manual_seed(7))


def in_blocks(case: tuple, block_size: int) -> tuple:
    """The case as one of blocks: of output channels as many more as make whole blocks."""
    if block_size == 1:
        return case
    (c, o, *sizes), rest = case
    groups = rest.get("groups", 1)
    block_rows = -(-o // (groups * block_size))
    return (c, groups * block_rows * block_size, *sizes), {**rest, "block_size": block_size}


def single_nonzero() -> tuple[SparseConv2d, Tensor]:
    conv = layer(5, 4, 3, padding=1, sparsity=0.9)
    swap_pattern(conv, 1)
    return conv, torch.randn(5, 5, 6, 7)


def applies(name: str, isa: str, lanes: str, dtype: torch.dtype = torch.float32) -> bool:
    """Whether kRow's conditions hold, said once more and independently of the native core."""
    if lanes != "row":
        return True
    (_, _, kernel, (_, width), _), rest = CASES[name]
    two = {key: _pair(rest.get(key, default)) for key, default in (("stride", 1), ("dilation", 1))}
    kernel, step = _pair(kernel), two["stride"][1]
    reach = two["dilation"][1] * (kernel[1] - 1)
    padding = rest.get("padding", 0)
    sides = (reach // 2, reach) if padding == "same" else (_pair(padding)[1], 2 * _pair(padding)[1])
    left, both = sides
    columns = max(-(-width // step), (width + both - reach - 1) // step + 1)
    slot = max(4, 1 << (columns - 1).bit_length())
    low, high = min(0, -left // step), max(0, (reach - left) // step)
    vector = VECTOR_BYTES[isa] // 4
    near = high - low < vector and max(high, -low) < slot
    strides = two["stride"][0] <= 4 and step <= 2
    return dtype == torch.float32 and strides and near and slot <= min(64, 4 * vector)


def _pair(value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _is_pointwise(n, contiguous_rows, width, out_width, kernel, stride, padding, *rest) -> bool:
    return kernel == stride == (1, 1) and padding == (0, 0)


@contextmanager
def kernels(isa: str, lanes: str | None = None, threads: int = 1):
    """Every plan made within is of this instruction set and, but for pointwise ones, these lanes.

    One thread unless asked: on a busy machine, small layers mostly wait for the others.
    """
    active, choose, before = _C.isa(), _C.choose_lanes, torch.get_num_threads()
    torch.set_num_threads(threads)
    patterns.clear()
    _C.set_isa(isa)
    if lanes is not None:
        free = lanes != "matrix"  # which takes pointwise ones, too
        _C.choose_lanes = lambda *args: choose(*args) if free and _is_pointwise(*args) else lanes
    try:
        yield
    finally:
        torch.set_num_threads(before)
        _C.choose_lanes = choose
        _C.set_isa(active)
        patterns.clear()


def used_lanes() -> set[str]:
    made = (plan for plan in patterns.plans() if isinstance(plan, _C.ConvPlan))
    return {plan.describe()["lanes"] for plan in made}
