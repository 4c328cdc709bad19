"""The GPU's lists of non-zeros against brute force, and when they are built; its division."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from helpers.cuda_conv_cases import AtRandom, gpu_kernels
from helpers.cuda_device import DEVICE, emulated, kernels
from helpers.cuda_plan_cases import DEVICES, Conv, convolutions
from helpers.cuda_planner import GatherTiling, PassShape, direct_key, list_key
from helpers.nn_cases import check_layer, layer, swap_pattern
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.backends import native
from dsr_kernels.backends.cuda import lists
from dsr_kernels.topology import Topology


@pytest.fixture(scope="module", autouse=True)
def _kernels():
    """Lists are made for the kernels under test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_cuda", kernels())
        yield


@dataclass
class NonZero:
    index: int
    source: int  # channel in its group
    dest: int  # of all groups
    tap: int


def nonzeros(conv: Conv, topology: Topology, transposed: bool) -> Iterator[NonZero]:
    crow, col = topology.crow_indices.tolist(), topology.col_indices.tolist()
    for row in range(conv.groups * conv.rows):
        group, in_group = divmod(row, conv.rows)
        for index in range(crow[row], crow[row + 1]):
            channel, tap = divmod(col[index], conv.kernel[0] * conv.kernel[1])
            if transposed:
                yield NonZero(index, in_group, group * conv.channels + channel, tap)
            else:
                yield NonZero(index, channel, row, tap)


def where_met(shape: PassShape) -> dict[int, tuple[int, int, int]]:
    """Tap -> (class, dh, dw)."""
    return {tap: (n, dh, dw) for n, c in enumerate(shape.classes) for tap, dh, dw in c.taps}


@settings(max_examples=150, deadline=None)
@given(convolutions(), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_lists_have_every_nonzero_where_the_kernels_look(conv, density, seed) -> None:
    _, _, shape = conv.arguments
    numel = conv.groups * conv.rows * conv.channels * conv.kernel[0] * conv.kernel[1]
    topology = Topology.random(
        shape.weight_shape, int(density * numel), generator=torch.Generator().manual_seed(seed)
    )
    pattern = topology.crow_indices.to(DEVICE), topology.col_indices.to(DEVICE)
    for shape in conv.passes():
        tiling = AtRandom(seed).gather(shape, 5, 0.3, 4, DEVICES[0])
        if tiling is None:
            check_direct_list(conv, topology, shape, *pattern)
        else:
            check_list(conv, topology, shape, tiling, *pattern)


def check_list(conv: Conv, topology, shape: PassShape, tiling: GatherTiling, crow, col) -> None:
    key = list_key(shape, tiling.channel_block, tiling.layouts)
    found = lists.build_list(crow, col, key)
    blocks = -(-shape.source_channels // tiling.channel_block)
    channels = shape.groups * shape.dest_channels
    expected: dict[int, list[tuple[int, int]]] = defaultdict(list)
    unmet = []
    for nonzero in nonzeros(conv, topology, shape.transposed):
        if nonzero.tap not in where_met(shape):
            unmet.append(nonzero.index)
            continue
        number, dh, dw = where_met(shape)[nonzero.tap]
        layout = tiling.layouts[number]
        block, channel = divmod(nonzero.source, tiling.channel_block)
        step, phase = divmod(dw, shape.col_step)
        vector = dh * layout.pitch + phase * layout.phase_cols + step + channel * layout.plane
        segment = (number * blocks + block) * channels + nonzero.dest
        expected[segment].append((nonzero.index, 16 * vector))
    offsets, indices = found.offsets.tolist(), found.value_index.tolist()
    bounds = found.bounds.tolist()[: len(shape.classes) * blocks * channels]
    for segment, (first, end) in enumerate(bounds):
        assert first % 2 == 0
        assert list(zip(indices[first:end], offsets[first:end], strict=True)) == expected[segment]
    for (_, end), (first, _) in itertools.pairwise(bounds):
        assert 0 <= first - end <= 1  # a warp reads on from segment to segment
        assert indices[end:first] == [-1] * (first - end)
    assert bounds[-1][1] + 8 <= found.entries == len(indices)
    met = [i for first, end in bounds for i in indices[first:end]]
    assert sorted(i for i in indices if i >= 0) == sorted(met)
    assert sorted(met + unmet) == list(range(topology.nnz))


def check_direct_list(conv: Conv, topology, shape: PassShape, crow, col) -> None:
    found = lists.build_direct_list(crow, col, direct_key(shape))
    channels = shape.groups * shape.dest_channels
    expected = defaultdict(list)
    for nonzero in nonzeros(conv, topology, shape.transposed):
        if nonzero.tap in where_met(shape):
            number, dh, dw = where_met(shape)[nonzero.tap]
            c = shape.classes[number]
            entry = [nonzero.source, c.first_h + dh, c.first_w + dw, nonzero.index]
            expected[number * channels + nonzero.dest].append(entry)
    entries = found.entries.tolist()
    for segment, (first, end) in enumerate(found.bounds.tolist()[: len(shape.classes) * channels]):
        assert entries[first:end] == expected[segment]


def test_a_list_is_kept_until_the_pattern_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    build = lists.build_list

    def counted(*arguments):
        built.append(build(*arguments))
        return built[-1]

    monkeypatch.setattr(lists, "build_list", counted)
    conv = layer(5, 6, 3, padding=1, stride=2, sparsity=0.4).to(DEVICE)
    x = torch.randn(4, 5, 6, 7, device=DEVICE)
    with gpu_kernels():
        for _ in range(3):
            check_layer(conv, x)
        assert len(built) in (2, 3)  # grad-weight's may be the forward's
        for change in (rewired_in_place, swap_pattern_of_the_same_size):
            built.clear()
            change(conv)
            for _ in range(2):
                check_layer(conv, x)
            assert len(built) in (2, 3)


def rewired_in_place(conv) -> None:
    other = layer(5, 6, 3, sparsity=0.4, seed=9)
    conv.crow_indices.copy_(other.crow_indices)
    conv.col_indices.copy_(other.col_indices)
    conv.adopt_pattern()


def swap_pattern_of_the_same_size(conv) -> None:
    swap_pattern(conv, conv.nnz, seed=5)


# ---- division -----------------------------------------------------------------------------------


@emulated
def test_quotients() -> None:
    """By every small divisor, and by large ones next to powers of two; below 2**31."""
    quotient = kernels().emulator.quotient
    powers = [2**n + d for n in range(9, 31) for d in (-1, 0, 1)]
    most = 2**31 - 1
    for divisor in (*range(1, 300), *powers, 10**6 + 3, most):
        multiples = {n * divisor for n in (1, 2, 3, 1000, most // divisor)}
        near = {m + d for m in multiples | {most} for d in (-1, 0, 1)} | {0, 1}
        for dividend in (n for n in near if n <= most):
            assert quotient(dividend, divisor) == dividend // divisor, (dividend, divisor)
