"""What the GPU's kernels are told, against brute force: passes and tilings."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
from helpers import cuda_planner
from helpers.cuda_conv_cases import DTYPES, AtRandom, gpu_kernels
from helpers.cuda_device import kernels
from helpers.cuda_plan_cases import DEVICES, Conv, convolutions
from helpers.cuda_planner import (
    COMPUTE_WARPS,
    Chosen,
    GatherTiling,
    GradWeightTiling,
    Layout,
    PassClass,
    PassShape,
    bank_conflicts,
    choose_gather,
    choose_grad_weight,
    gather_tilings,
    grad_input_shape,
    grad_weight_tilings,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.backends.blocks import BLOCK_SIZES
from dsr_kernels.backends.cuda import plans
from dsr_kernels.backends.cuda.plans import Device

# ---- passes -------------------------------------------------------------------------------------


def pixels(shape: PassShape, c: PassClass) -> Iterator[tuple]:
    """(position, destination pixel) of a class."""
    for row, col in itertools.product(range(c.rows), range(c.cols)):
        pixel = c.dest_h + row * shape.dest_step_h, c.dest_w + col * shape.dest_step_w
        yield (row, col), pixel


def meetings_of(shape: PassShape) -> Iterator[tuple]:
    for c in shape.classes:
        for ((row, col), pixel), (tap, dh, dw) in itertools.product(pixels(shape, c), c.taps):
            h = c.first_h + row * shape.row_step + dh
            w = c.first_w + col * shape.col_step + dw
            if 0 <= h < shape.height and 0 <= w < shape.width:
                yield pixel, tap, (h, w)


@settings(max_examples=400, deadline=None)
@given(convolutions())
def test_passes_meet_the_taps_that_the_convolution_has(conv: Conv) -> None:
    forward, grad_input = conv.passes()
    expected = sorted(conv.meetings())
    assert sorted(meetings_of(forward)) == expected
    assert sorted(meetings_of(grad_input)) == sorted((x, tap, y) for y, tap, x in expected)
    for shape, size in ((forward, (conv.output(0), conv.output(1))), (grad_input, conv.size)):
        covered = sorted(pixel for c in shape.classes for _, pixel in pixels(shape, c))
        assert covered == list(itertools.product(range(size[0]), range(size[1])))
        for c in shape.classes:
            taps = [(dh, dw) for _, dh, dw in c.taps]
            assert not taps or (min(dh for dh, _ in taps), min(dw for _, dw in taps)) == (0, 0)


def test_taps_that_meet_only_padding_take_no_room() -> None:
    for d in (256, 1024, 2**40):
        conv = Conv((8, 8), (3, 3), (1, 1), (d,) * 4, (d, d), 64, 64)
        for shape in conv.passes():
            (only,) = shape.classes
            assert only.taps == ((4, 0, 0),) and (only.first_h, only.first_w) == (0, 0)
            assert choose_gather(shape, 128, 0.1, 4, DEVICES[0]) is not None
    conv = Conv((3, 3), (2, 2), (1, 1), (2**39,) * 4, (2**40, 2**40))
    for shape in conv.passes():
        assert [(c.taps, c.first_h, c.first_w) for c in shape.classes] == [((), 0, 0)]


def test_classes_of_a_stride_beyond_the_image_are_those_that_have_pixels() -> None:
    conv = Conv((5, 1), (3, 1), (2**31 - 1, 1), (1, 1, 0, 0), (1, 1))
    _, _, shape = conv.arguments
    found = grad_input_shape((1, 5, 1), (1, 1, 1), shape).classes
    assert [(c.dest_h, c.rows) for c in found] == [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1)]
    assert [c.taps for c in found] == [((1, 0, 0),), ((2, 0, 0),), (), (), ()]


# ---- tilings ------------------------------------------------------------------------------------


@dataclass
class Slabs:
    """One channel of a class's slabs, as csrc/cuda/conv/slab.cuh fills them."""

    shape: PassShape
    c: PassClass
    layout: Layout
    vectors: int  # of images
    tile: int

    def position(self, number: int) -> tuple[int, int, int, int] | None:
        """(vector of images, chunk, row, column of the class); None in a chunk's ragged end."""
        line, col = divmod(number, self.layout.tile_cols)
        image, row = divmod(line, self.c.rows)
        vector, chunk = divmod(image, self.layout.chunks)
        col += chunk * self.layout.tile_cols
        return (vector, chunk, row, col) if col < self.c.cols else None

    def slab_row(self, number: int) -> int:
        image, row = divmod(number // self.layout.tile_cols, self.c.rows)
        return image * self.layout.image_rows + row * self.shape.row_step

    def contents(self, first: int) -> dict[int, tuple]:
        """place -> (vector of images, source row, source column), for the tile's first position."""
        last = min(first + self.tile, self.layout.positions) - 1
        found: dict[int, tuple] = {}
        rows = range(self.slab_row(first), self.slab_row(last) + self.c.reach_h + 1)
        for row, col in itertools.product(rows, range(self.layout.slab_cols)):
            image, in_image = divmod(row, self.layout.image_rows)
            vector, chunk = divmod(image, self.layout.chunks)
            step, phase = divmod(col, self.shape.col_step)
            place = (row - rows[0]) * self.layout.pitch + phase * self.layout.phase_cols + step
            assert place not in found
            left = chunk * self.layout.tile_cols * self.shape.col_step
            found[place] = vector, in_image + self.c.first_h, left + col + self.c.first_w
        assert max(found) < self.layout.plane
        return found


def tilings(shape: PassShape, images: int, size: int, seed: int, device: Device):
    """(tiling, tile, layouts): those to choose from, and some at random."""
    problem = shape, images, 0.3, size, device
    chosen = AtRandom(seed)
    found = [*gather_tilings(*problem), *(chosen.gather(*problem) for _ in range(5))]
    if not shape.transposed:
        found += grad_weight_tilings(*problem)
        found += [chosen.grad_weight(*problem) for _ in range(5)]
    for tiling in found:
        if isinstance(tiling, GatherTiling):
            tile = COMPUTE_WARPS // tiling.row_warps * tiling.units * 32
            yield tiling, tile, tiling.layouts
        elif tiling is not None:
            yield tiling, tiling.units * 32, (tiling.layout,)


@settings(max_examples=100, deadline=None)
@given(
    conv=convolutions(),
    images=st.sampled_from((1, 5, 17)),
    size=st.sampled_from((2, 4)),
    device=st.sampled_from(DEVICES),
    seed=st.integers(0, 2**32 - 1),
)
def test_tilings_cover_everything_once_and_fit(conv, images, size, device, seed) -> None:
    vectors = -(-images // (16 // size))
    for shape in conv.passes():
        seen = set()
        for tiling, tile, layouts in tilings(shape, images, size, seed, device):
            assert 1 <= tiling.channel_block <= shape.source_channels
            plane = max(layout.plane for layout in layouts)
            assert 2 * tiling.channel_block * plane * 16 <= device.shared_per_block
            if isinstance(tiling, GradWeightTiling):
                assert 1 <= tiling.row_block <= shape.dest_channels
                unneeded = tiling.splits * tiling.tiles_per_split - tiling.layout.tiles
                assert 0 <= unneeded < tiling.tiles_per_split
            for c, layout in zip(shape.classes, layouts, strict=True):
                if (c, layout, tile) not in seen:
                    check_layout(Slabs(shape, c, layout, vectors, tile))
                seen.add((c, layout, tile))


def check_layout(slabs: Slabs) -> None:
    layout, c, shape = slabs.layout, slabs.c, slabs.shape
    assert layout.tiles == -(-layout.positions // slabs.tile)
    positions = [slabs.position(n) for n in range(layout.positions)]
    covered = Counter((p[0], p[2], p[3]) for p in positions if p is not None)
    everything = itertools.product(range(slabs.vectors), range(c.rows), range(c.cols))
    assert covered == Counter(everything)
    for first in range(0, layout.positions, slabs.tile):
        found, top = slabs.contents(first), slabs.slab_row(first)
        for number in range(first, min(first + slabs.tile, layout.positions)):
            if (position := slabs.position(number)) is None:
                continue
            vector, chunk, row, col = position
            at = (slabs.slab_row(number) - top) * layout.pitch + col - chunk * layout.tile_cols
            for _, dh, dw in c.taps:
                step, phase = divmod(dw, shape.col_step)
                h = c.first_h + row * shape.row_step + dh
                w = c.first_w + col * shape.col_step + dw
                offset = dh * layout.pitch + phase * layout.phase_cols + step
                assert found[at + offset] == (vector, h, w)


@pytest.mark.parametrize("line_step", [1, 2, 3, 5, 7, 8, 12, 13])
def test_bankbank_conflicts(line_step: int) -> None:
    """Eight lanes read vectors of 16 bytes side by side; two in one column wait for each other."""
    for width, tile in itertools.product((1, 2, 3, 4, 5, 7, 8, 12, 16, 20), (32, 64, 256)):
        places = [line * line_step + col for line in range(8 * tile) for col in range(width)]
        groups = [places[i : i + 8] for i in range(0, len(places), 8)]
        wavefronts = sum(max(Counter(p % 8 for p in group).values()) for group in groups)
        found = bank_conflicts(line_step, tile, width)
        assert found == pytest.approx(wavefronts / len(groups)), (width, tile)


LARGE = [
    (Conv((224, 224), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 3, 64), 64),
    (Conv((397, 391), (3, 3), (3, 3), (1, 1, 1, 1), (1, 1), 64, 64), 3),
    (Conv((1, 5000), (1, 3), (1, 1), (0, 0, 1, 1), (1, 1), 64, 64), 129),
    (Conv((500, 501), (31, 31), (5, 5), (15, 15, 15, 15), (3, 3), 8, 8), 2),
    (Conv((7, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 2048, 2048), 512),
]


@pytest.mark.parametrize("conv, images", LARGE)
@pytest.mark.parametrize("direction", plans.DIRECTIONS)
def test_the_choice_is_made_once(conv: Conv, images: int, direction: str) -> None:
    x, y, shape = conv.arguments
    sizes = (images, *x), (images, *y), shape
    strides = (conv.channels, 1, 1, 1), (conv.rows, 1, 1, 1)
    with gpu_kernels():
        problem = direction, *sizes, 0.1, 1, torch.float32, *strides, DEVICES[0], False
        assert plans.plan_of(*problem) is plans.plan_of(*problem)


@settings(max_examples=150, deadline=None)
@given(
    conv=convolutions(),
    direction=st.sampled_from(plans.DIRECTIONS),
    size=st.sampled_from(BLOCK_SIZES),
    dtype=st.sampled_from(DTYPES),
    device=st.sampled_from(DEVICES),
    density=st.sampled_from((0.001, 0.1, 0.9)),
    last=st.booleans(),
)
def test_a_plan_is_of_the_cheapest_tiling(conv, direction, size, dtype, device, density, last):
    """As it is chosen here, of the lists of all."""
    conv.rows *= size
    x, y, shape = conv.arguments
    strides = [strides_of((9, *sizes), last) for sizes in (x, y)]
    where = dtype, *(strides[::-1] if direction == "grad_input" else strides), device
    problem = direction, (9, *x), (9, *y), shape, density, size, *where
    with gpu_kernels(None, None, None, None, None):
        for windows in (False, True):
            made, chosen = plans.make(*problem, windows), Chosen().make(*problem, windows)
            assert (made.kind, made.key, made.unmet) == (chosen.kind, chosen.key, chosen.unmet)
            assert made.describe() == chosen.describe()


def strides_of(size: tuple[int, ...], last: bool) -> tuple[int, ...]:
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty(size, memory_format=form).stride()


def test_the_planner_is_told_what_the_kernels_are_made_for() -> None:
    """And the tests that choose tilings."""
    limits = kernels().limits
    ours = {name: getattr(cuda_planner, name) for name in vars(cuda_planner) if name.isupper()}
    names = {"WINDOW": "WINDOW_ROWS", "STEP": "STEP_ENTRIES", "COMPUTE": "WINDOW_COMPUTE_WARPS"}
    assert len(ours) > 8
    for name, value in ours.items():
        assert getattr(limits, names.get(name, name)) == value, name


def test_no_tiling_where_no_slab_fits_or_positions_need_more_than_32_bits() -> None:
    conv = Conv((20, 20), (9, 9), (1, 1), (8, 8, 8, 8), (2, 2), 2, 3)
    for shape in conv.passes():
        assert choose_gather(shape, 3, 0.3, 4, DEVICES[0]) is not None
        assert choose_gather(shape, 3, 0.3, 4, DEVICES[1]) is None
        assert choose_gather(shape, 2**25, 0.3, 4, DEVICES[0]) is None
    for images, device in ((3, DEVICES[1]), (2**25, DEVICES[0])):
        assert choose_grad_weight(conv.passes()[0], images, 0.3, 4, device) is None
