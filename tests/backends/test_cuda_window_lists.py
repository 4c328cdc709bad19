"""The lists of the GPU's tensor-core kernels against brute force."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict

import pytest
import torch
from helpers.cuda_conv_cases import AtRandom
from helpers.cuda_device import DEVICE, kernels
from helpers.cuda_plan_cases import DEVICES, Conv, convolutions
from helpers.cuda_planner import BANKS, STEP, WINDOW, PassShape, entries_met, list_key
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.backends import native
from dsr_kernels.backends.blocks import BLOCK_SIZES
from dsr_kernels.backends.cuda.window_lists import WindowList, build_windows
from dsr_kernels.topology import Topology


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    """Lists are made for the kernels under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_cuda", kernels())
        yield


def expected_places(
    conv: Conv, topology: Topology, shape: PassShape, tiling
) -> dict[int, dict[tuple[int, int], int]]:
    """Segment -> {(row in the window, offset in the slab): which of the flat values}."""
    crow, col = topology.crow_indices.tolist(), topology.col_indices.tolist()
    size, taps = topology.block_size, conv.kernel[0] * conv.kernel[1]
    where = {tap: (n, dh, dw) for n, c in enumerate(shape.classes) for tap, dh, dw in c.taps}
    blocks = -(-shape.source_channels // tiling.channel_block)
    windows = -(-shape.dest_channels // WINDOW)
    found: dict[int, dict[tuple[int, int], int]] = defaultdict(dict)
    for row in range(conv.groups * conv.rows):
        group, in_group = divmod(row, conv.rows)
        for block in range(crow[row // size], crow[row // size + 1]):
            channel, tap = divmod(col[block], taps)
            if tap not in where:
                continue
            source, dest = (in_group, channel) if shape.transposed else (channel, in_group)
            number, dh, dw = where[tap]
            layout = tiling.layouts[number]
            part, channel = divmod(source, tiling.channel_block)
            step, phase = divmod(dw, shape.col_step)
            vector = dh * layout.pitch + phase * layout.phase_cols + step + channel * layout.plane
            segment = ((number * blocks + part) * shape.groups + group) * windows + dest // WINDOW
            found[segment][dest % WINDOW, 16 * vector] = block * size + row % size
    return found


def decoded(found: WindowList, transposed: bool, first: int, end: int) -> dict:
    """What the pieces of some steps say: {(row, offset): which of the flat values}."""
    offsets, pieces, places = (t.tolist() for t in (found.offsets, found.pieces, found.places))
    bounds, values = found.piece_bounds.tolist(), {}
    for step in range(first, end):
        for piece in range(bounds[step], bounds[step + 1]):
            for i in range(found.piece_size):
                place = places[piece] + i
                row, k = divmod(place, STEP) if transposed else divmod(place, WINDOW)[::-1]
                key = row, offsets[STEP * step + k]
                assert key not in values
                values[key] = pieces[piece] + i
    return values


@settings(max_examples=200, deadline=None)
@given(
    convolutions(),
    st.sampled_from(BLOCK_SIZES),
    st.sampled_from((1, 3, 5)),
    st.booleans(),
    st.floats(0, 1),
    st.integers(0, 2**32 - 1),
)
def test_every_nonzero_is_where_the_kernels_look(conv, size, rows, across, density, seed) -> None:
    """Also where a block lies across two groups."""
    conv.rows = rows * size // (math.gcd(size, conv.groups) if across else 1)
    _, _, shape = conv.arguments
    blocks = conv.groups * conv.rows // size * conv.channels * conv.kernel[0] * conv.kernel[1]
    topology = Topology.random(
        shape.weight_shape,
        int(density * blocks) * size,
        block_size=size,
        generator=torch.Generator().manual_seed(seed),
    )
    pattern = topology.crow_indices.to(DEVICE), topology.col_indices.to(DEVICE)
    for shape in conv.passes():
        tiling = AtRandom(seed).gather(shape, 5, 0.3, 2, DEVICES[0])
        if tiling is not None:
            check(conv, topology, shape, tiling, pattern)


def check(conv: Conv, topology, shape: PassShape, tiling, pattern) -> None:
    key = list_key(shape, tiling.channel_block, tiling.layouts)
    found = build_windows(*pattern, key)
    expected = expected_places(conv, topology, shape, tiling)
    bounds = found.bounds.tolist()
    segments = len(shape.classes) * key.blocks * shape.groups * -(-shape.dest_channels // WINDOW)
    assert len(bounds) == segments // len(shape.classes) * key.classes
    assert bounds[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    for segment, (first, end) in enumerate(bounds[:segments]):
        assert decoded(found, shape.transposed, first, end) == expected.get(segment, {})
        offsets = found.offsets[STEP * first : STEP * end].tolist()
        used = {offset for _, offset in expected.get(segment, {})}
        assert set(offsets) == used  # filled up by its own
        assert len(offsets) - len(used) < STEP
    steps = found.offsets.numel() // STEP
    assert bounds[-1][1] <= steps == found.piece_bounds.numel() - 1
    assert found.piece_bounds[-1] == found.pieces.numel() == found.places.numel()
    assert found.pieces.numel() * found.piece_size == topology.nnz


def forward_key(channels: int, rows: int, transposed: bool = False, channel_block: int = 0):
    conv = Conv((9, 9), (3, 3), (1, 1), (1,) * 4, (1, 1), channels, rows)
    shape = conv.passes()[transposed]
    tiling = AtRandom(3).gather(shape, 8, 0.3, 2, DEVICES[0])
    return list_key(shape, channel_block or shape.source_channels, tiling.layouts)


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("transposed", [False, True])
def test_eight_positions_fall_on_different_banks(size: int, transposed: bool) -> None:
    """As far as there are enough of each bank: of a full weight, always."""
    key = forward_key(32, 32, transposed)
    pattern = Topology.random((32, 32, 3, 3), 32 * 32 * 9, block_size=size)
    found = build_windows(pattern.crow_indices, pattern.col_indices, key)
    banks = (found.offsets // 16 % BANKS).view(-1, BANKS).sort(1).values
    full = (banks == torch.arange(BANKS)).all(1)
    assert full.sum() >= 0.9 * len(full)


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_a_block_that_channels_cut_is_taken_apart(size: int) -> None:
    pattern = Topology.random((64, 5, 3, 3), 32 * 9 * 5, block_size=size)
    for channel_block, cut in ((64, False), (32, False), (24, size > 8), (9, size > 1)):
        key = forward_key(5, 64, True, channel_block)
        found = build_windows(pattern.crow_indices, pattern.col_indices, key)
        assert found.piece_size == (1 if cut else min(size, 16))


def test_bytes_of_the_list() -> None:
    """No array of zeros: five bytes per piece, four per position, and few besides."""
    key = forward_key(64, 64)
    for size in (1, 16):
        pattern = Topology.random((64, 64, 3, 3), 64 * 64 * 9 // 10 // 16 * 16, block_size=size)
        found = build_windows(pattern.crow_indices, pattern.col_indices, key)
        assert found.bytes <= 9 * pattern.nnz / size + 4 * 36864 / 256 + 16 * 16 * 4


@pytest.mark.parametrize(
    "rows, size, transposed, independent",
    [
        *((8, 1, False, 8), (64, 1, False, 16), (64, 4, False, 4), (64, 32, False, 1)),
        # Blocks of 16 across groups of 8 rows, and of 8 across groups of 12.
        *((8, 16, False, 1), (12, 8, False, 3), (8, 16, True, 16)),
    ],
)
def test_entries_that_a_window_meets(rows, size, transposed, independent) -> None:
    """As many rows of a window as differ say how many of its pairs have a non-zero."""
    shape = Conv((9, 9), (3, 3), (1, 1), (1,) * 4, (1, 1), 64, rows).passes()[transposed]
    assert entries_met(shape, 0.1, size) == pytest.approx(1 - 0.9**independent)
