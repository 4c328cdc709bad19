"""The GPU's planner in Python's terms: its structs (csrc/cuda/conv/plan) as dataclasses.

What tests choose, a plan is made of: `Chosen` stands for `backends.cuda.plans.make`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from helpers.cuda_device import kernels

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda import plans
from dsr_kernels.backends.cuda.lists import DirectKey, ListKey
from dsr_kernels.backends.cuda.plans import Device

# csrc/cuda/conv/limits.h; test_cuda_plans.py holds them against the kernels'.
VECTOR_BYTES, BANKS, COMPUTE_WARPS, WINDOW, STEP = 16, 8, 16, 16, 16
TURN_STEPS, HELD_TURNS, COMPUTE = 2, 2, (8, 12, 16)
GATHER_VARIANTS = {4: ((8, 1), (4, 2), (4, 1)), 2: ((4, 1), (2, 2))}
GRAD_WEIGHT_UNITS = {4: (2, 1), 2: (2, 1)}
WINDOW_UNITS, FLOAT_WINDOW_UNITS = (8, 4), 8


@dataclass(frozen=True)
class PassClass:
    rows: int
    cols: int
    dest_h: int
    dest_w: int
    first_h: int
    first_w: int
    taps: tuple[tuple[int, int, int], ...]

    @property
    def reach_h(self) -> int:
        return max((dh for _, dh, _ in self.taps), default=0)


@dataclass(frozen=True)
class PassShape:
    groups: int
    source_channels: int
    dest_channels: int
    height: int
    width: int
    taps: int
    row_step: int
    col_step: int
    dest_step_h: int
    dest_step_w: int
    transposed: bool
    classes: tuple[PassClass, ...]

    @classmethod
    def of(cls, fields: tuple) -> PassShape:
        *sizes, classes = fields
        found = (PassClass(*c[:6], tuple(map(tuple, c[6]))) for c in classes)
        return cls(*sizes, tuple(found))

    @cached_property
    def native(self) -> tuple:
        return dataclasses.astuple(self)


@dataclass(frozen=True)
class Layout:
    tile_cols: int
    chunks: int
    image_rows: int
    slab_cols: int
    phase_cols: int
    pitch: int
    plane: int
    positions: int
    tiles: int
    conflicts: float


@dataclass(frozen=True)
class GatherTiling:
    rows: int
    units: int
    row_warps: int
    channel_block: int
    layouts: tuple[Layout, ...]
    clocks: float


@dataclass(frozen=True)
class GradWeightTiling:
    units: int
    channel_block: int
    row_block: int
    tiles_per_split: int
    layout: Layout
    clocks: float

    @property
    def splits(self) -> int:
        return -(-self.layout.tiles // self.tiles_per_split)


@dataclass(frozen=True)
class WindowGradWeightTiling:
    tile: int
    compute_warps: int
    grad_warps: int
    window_block: int
    channel_block: int
    tiles_per_split: int
    layout: Layout
    clocks: float


# ---- passes, layouts, keys ----------------------------------------------------------------------


def pass_shape(direction: str, x_size, y_size, shape: ConvShape, strides=None) -> PassShape:
    """Sizes with images."""
    sizes = plans.pass_sizes(tuple(x_size), tuple(y_size), shape)
    return PassShape.of(kernels().planning.pass_shape(direction, *sizes, strides))


def forward_shape(input_size, output_size, shape: ConvShape) -> PassShape:
    """Sizes without images."""
    return pass_shape("forward", (1, *input_size), (1, *output_size), shape)


def grad_input_shape(input_size, output_size, shape: ConvShape) -> PassShape:
    return pass_shape("grad_input", (1, *input_size), (1, *output_size), shape)


def options_of(c: PassClass, steps, groups: int, tile: int, width: int) -> list[Layout]:
    found = kernels().planning.layouts(dataclasses.astuple(c), steps, groups, tile, width)
    return [Layout(*fields) for fields in found]


def bank_conflicts(line_step: int, tile: int, width: int) -> float:
    return kernels().planning.bank_conflicts(line_step, tile, width)


def entries_met(shape: PassShape, density: float, block_size: int) -> float:
    return kernels().planning.entries_met(shape.native, density, block_size)


def list_key(shape: PassShape, channel_block: int, layouts: tuple[Layout, ...]) -> ListKey:
    fields = [dataclasses.astuple(layout) for layout in layouts]
    return ListKey(*kernels().planning.slab_key(shape.native, channel_block, fields))


def direct_key(shape: PassShape) -> DirectKey:
    key = kernels().planning.direct_key(shape.native)
    return DirectKey(*key[:6], *key[7:])


# ---- tilings ------------------------------------------------------------------------------------


def gather_tilings(
    shape: PassShape, images: int, density: float, size: int, device: Device
) -> list[GatherTiling]:
    found = kernels().planning.gather_tilings(shape.native, images, density, size, device)
    return [_gather(fields) for fields in found]


def window_gather_tilings(
    shape: PassShape, images: int, density: float, block_size: int, size: int, device: Device
) -> list[GatherTiling]:
    problem = shape.native, images, density, block_size, size, device
    return [_gather(fields) for fields in kernels().planning.window_gather_tilings(*problem)]


def grad_weight_tilings(
    shape: PassShape, images: int, density: float, size: int, device: Device
) -> list[GradWeightTiling]:
    found = kernels().planning.grad_weight_tilings(shape.native, images, density, size, device)
    return [GradWeightTiling(*cut, Layout(*layout), clocks) for *cut, layout, clocks in found]


def window_grad_weight_tilings(
    shape: PassShape, images: int, density: float, block_size: int, size: int, device: Device
) -> list[WindowGradWeightTiling]:
    problem = shape.native, images, density, block_size, size, device
    found = kernels().planning.window_grad_weight_tilings(*problem)
    return [WindowGradWeightTiling(*cut, Layout(*layout), clocks) for *cut, layout, clocks in found]


def _gather(fields: tuple) -> GatherTiling:
    *cut, layouts, clocks = fields
    return GatherTiling(*cut, tuple(Layout(*layout) for layout in layouts), clocks)


def cheapest(tilings: list):
    """The first of the cheapest; None of none."""
    return min(tilings, key=lambda tiling: tiling.clocks, default=None)


def choose_gather(*problem) -> GatherTiling | None:
    return cheapest(gather_tilings(*problem))


def choose_grad_weight(*problem) -> GradWeightTiling | None:
    return cheapest(grad_weight_tilings(*problem))


def choose_window_gather(*problem) -> GatherTiling | None:
    return cheapest(window_gather_tilings(*problem))


def choose_window_grad_weight(*problem) -> WindowGradWeightTiling | None:
    return cheapest(window_grad_weight_tilings(*problem))


# ---- plans --------------------------------------------------------------------------------------


@dataclass
class Chosen:
    """Makes plans of the tilings that these functions choose: of (shape, images, density, element
    size, device), those of windows with the block size before the element size.
    """

    gather: Callable | None = None  # None: as the model does
    grad_weight: Callable | None = None
    window_gather: Callable | None = None
    window_grad_weight: Callable | None = None

    def make(
        self,
        direction,
        x_size,
        y_size,
        shape,
        density,
        block_size,
        dtype,
        source_strides,
        dest_strides,
        device,
        windows,
    ):
        strides = source_strides, dest_strides
        shape_of_pass = pass_shape(direction, x_size, y_size, shape, strides)
        problem = shape_of_pass, x_size[0], density
        of_grad_weight = direction == "grad_weight"
        by_rows = (
            self.grad_weight or choose_grad_weight
            if of_grad_weight
            else self.gather or choose_gather
        )
        by_windows = (
            self.window_grad_weight or choose_window_grad_weight
            if of_grad_weight
            else self.window_gather or choose_window_gather
        )
        rows = by_rows(*problem, dtype.itemsize, device) if dtype != torch.float64 else None
        taken = by_windows(*problem, block_size, dtype.itemsize, device) if windows else None
        return kernels().ConvPlan(
            direction,
            x_size[0],
            *plans.pass_sizes(x_size, y_size, shape),
            density,
            block_size,
            str(dtype).removeprefix("torch."),
            *strides,
            device,
            windows,
            tuple(t and dataclasses.astuple(t) for t in (rows, taken)),
        )
