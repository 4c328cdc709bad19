"""Plans of the GPU's passes: `_cuda.ConvPlan` decides, this asks it once for each kind of call."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple, get_args

import torch

from dsr_kernels.backends import native
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda.lists import DirectKey, ListKey

Direction = Literal["forward", "grad_input", "grad_weight"]
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
Sizes = tuple[int, ...]


class Device(NamedTuple):
    """What the choice depends on."""

    multiprocessors: int
    shared_per_block: int  # bytes a block may have


class PassPlan(NamedTuple):
    native: native._cuda.ConvPlan
    direction: Direction
    kind: str  # "slab", "window" or "direct"
    key: ListKey | DirectKey  # of the list of non-zeros that the pattern needs
    unmet: tuple[bool, ...]  # [KH * KW]: the taps that meet only padding; () if there are none


# Keyed by what a call has at hand. What a pattern has besides is in its lists.
@functools.lru_cache(maxsize=2048)
def plan_of(
    direction: Direction,
    x_size: Sizes,  # (N, C, H, W)
    y_size: Sizes,  # (N, O, P, Q)
    shape: ConvShape,
    density: float,
    block_size: int,
    dtype: torch.dtype,  # of activations
    source_strides: Sizes,  # of x; of a grad-input, of y's gradient
    dest_strides: Sizes,  # of y or its gradient; of a grad-input, of x's
    device: Device,
    windows: bool,  # whether tensor cores may be taken
) -> PassPlan:
    strides = source_strides, dest_strides
    made = make(
        direction, x_size, y_size, shape, density, block_size, dtype, *strides, device, windows
    )
    key = DirectKey(*made.key[:6], *made.key[7:]) if made.kind == "direct" else ListKey(*made.key)
    return PassPlan(made, direction, made.kind, key, made.unmet)


def make(
    direction: Direction,
    x_size: Sizes,
    y_size: Sizes,
    shape: ConvShape,
    density: float,
    block_size: int,
    dtype: torch.dtype,
    source_strides: Sizes,
    dest_strides: Sizes,
    device: Device,
    windows: bool,
) -> native._cuda.ConvPlan:
    return native._cuda.ConvPlan(
        direction,
        x_size[0],
        *pass_sizes(x_size, y_size, shape),
        density,
        block_size,
        str(dtype).removeprefix("torch."),
        source_strides,
        dest_strides,
        device,
        windows,
    )


def pass_sizes(x_size: Sizes, y_size: Sizes, shape: ConvShape) -> native._cuda._Sizes:
    """The sizes of a convolution as the native planner takes them."""
    top, _, left, _ = shape.padding  # the output size says what lies below and to the right
    where = shape.kernel, shape.stride, (top, left), shape.dilation, shape.groups
    return x_size[1:], y_size[1:], *where


def density_of(nnz: int, shape: ConvShape) -> float:
    """Rounded, so that a rewire that moves a few non-zeros does not change the tiling."""
    return float(f"{nnz / math.prod(shape.weight_shape):.1g}")


@functools.lru_cache(maxsize=64)
def limits_of(index: int) -> Device:
    """Of a device of torch's."""
    found = torch.cuda.get_device_properties(index)
    return Device(
        found.multi_processor_count,
        found.shared_memory_per_block_optin,  # type: ignore[attr-defined]
    )
