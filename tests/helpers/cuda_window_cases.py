"""Layers by the GPU's matrix units: operands are rounded to the activations' type, or to TF32."""

from __future__ import annotations

import dataclasses

import torch
from helpers.cuda_conv_cases import AtRandom, Choice, conv_and_input
from helpers.cuda_device import EMULATED
from helpers.cuda_planner import (
    FLOAT_WINDOW_UNITS,
    WINDOW,
    WINDOW_UNITS,
    GatherTiling,
    PassShape,
    window_gather_tilings,
)
from helpers.formats import gradient_of
from helpers.matrix_units import as_operand, round_weights, truncation
from helpers.nn_cases import dense_conv, dense_results, positions_of
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.backends.cuda.plans import Device

# fmt: off
SHAPES = {  # C, O, kernel, (H, W), N and arguments
    "56 wide": ((8, 24, 3, (4, 56), 5), {"padding": 1}),
    "16 wide": ((9, 40, 3, (5, 16), 9), {"padding": 1}),
    "14 wide": ((20, 32, 3, (6, 14), 8), {"padding": 1}),
    "7 wide, stride 2": ((8, 16, 3, (7, 7), 17), {"padding": 1, "stride": 2}),
    "stride (2, 3)": ((24, 18, (3, 2), (8, 11), 13), {"padding": 1, "stride": (2, 3), "groups": 2}),
    "many channels, stride (2, 3)": (
        (20, 40, (3, 2), (8, 11), 9), {"padding": 1, "stride": (2, 3), "sparsity": 0.9}
    ),
    "dilated": ((12, 17, 3, (7, 9), 3), {"padding": 2, "dilation": 2}),
    "no padding": ((16, 64, 3, (5, 6), 8), {}),
    "groups": ((32, 96, 3, (6, 5), 9), {"padding": 1, "groups": 4}),
    "1 x 1": ((40, 33, 1, (5, 7), 9), {}),
    "1 x 1, stride 2": ((16, 32, 1, (6, 6), 8), {"stride": 2}),
    "dead taps": ((16, 16, 3, (3, 3), 5), {"padding": 9, "dilation": 9}),
    "dense": ((16, 16, 3, (4, 5), 9), {"padding": 1, "sparsity": 0.0}),
    "nearly empty": ((32, 48, 3, (4, 5), 9), {"padding": 1, "sparsity": 0.99}),
}
# fmt: on


def problem(
    name: str, dtype: torch.dtype, block_size: int = 1, **arguments
) -> tuple[SparseConv2d, Tensor]:
    """With as many channels more as blocks need. Values are numbers of the activations' type.

    Values and x of float32 are numbers of TF32, so that products are exact.
    """
    (c, o, *rest), more = SHAPES[name]
    groups = more.get("groups", 1)
    o = -(-o // (groups * block_size)) * groups * block_size
    conv, x = conv_and_input((c, o, *rest), {**more, "block_size": block_size, **arguments}, dtype)
    round_weights(conv, dtype)
    conv.weight_values.data = as_operand(conv.weight_values.detach())
    return conv, as_operand(x)


def gradient(conv: SparseConv2d, x: Tensor) -> Tensor:
    """Of y; of float32, numbers of TF32."""
    return as_operand(gradient_of(conv, x))


def check_gathers(conv: SparseConv2d, x: Tensor, grad: Tensor, found: list[Tensor]) -> None:
    """y and gx: float32 sums of exact products, rounded once."""
    same, exact = (dense_results(conv, x, grad, d, "cpu") for d in (torch.float32, torch.float64))
    more = truncation(conv, grad)
    for name, ours, torchs, true, cut in zip(("y", "gx"), found, same, exact, more, strict=False):
        error = (ours.cpu().double() - true).abs()
        rounding = 0.505 * torch.finfo(ours.dtype).eps * true.abs()
        allowed = 2 * (torchs.double() - true).abs().max() + 1e-5
        allowed += 0 if EMULATED else cut * true.abs().max()
        assert ((error - rounding) <= allowed).all(), (name, (error - rounding).max(), allowed)


def readers(conv: SparseConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs with a weight for something not finite, those of windows in which any has one)."""
    weight = torch.zeros(conv.numel, dtype=torch.float64)
    weight[positions_of(conv).cpu().flatten()] = 1
    rows = weight.view(conv.groups, -1, conv.row_length)
    windows = [w.amax(1, keepdim=True).expand_as(w) for w in rows.split(WINDOW, 1)]
    bad = (~x.isfinite()).cpu().double()
    own, by_window = (
        dense_conv(conv, bad, w.reshape(conv.weight_shape), None) > 0
        for w in (rows, torch.cat(windows, 1))
    )
    return own.to(x.device), by_window.to(x.device)


def units_of(size: int) -> tuple[int, ...]:
    """Positions of a warp that there are kernels of."""
    return WINDOW_UNITS if size == 2 else (FLOAT_WINDOW_UNITS,)


def model(*problem) -> GatherTiling | None:
    """The cheapest, though other kernels may cost less; None of less than 8 channels."""
    found = min(window_gather_tilings(*problem), key=lambda t: t.clocks, default=None)
    return found and dataclasses.replace(found, clocks=-1.0)


def small(units: int) -> Choice:
    """This instance, with as few positions to a tile as it can, and several slabs."""

    def choose(*problem) -> GatherTiling:
        found = [t for t in window_gather_tilings(*problem) if t.units == units]
        assert found
        tiling = max(found, key=lambda t: t.row_warps)
        channels = min(tiling.channel_block, -(-problem[0].source_channels // 2))
        return dataclasses.replace(tiling, channel_block=channels, clocks=-1.0)

    return choose


def choices(*problem) -> list[GatherTiling]:
    """Some of what there is to choose from, and with few channels in a slab."""
    found = list(window_gather_tilings(*problem))
    few = [
        dataclasses.replace(t, channel_block=min(b, t.channel_block))
        for t in found
        for b in (2, 3, 5, 6, 8, 12)
    ]
    every = list(dict.fromkeys(dataclasses.replace(t, clocks=-1.0) for t in found + few))
    return every[:: max(1, len(every) // 12)]


class WindowsAtRandom(AtRandom):
    """Tilings with chunks, pitches and blocks that need not be good ones."""

    def windows(
        self,
        shape: PassShape,
        images: int,
        density: float,
        block_size: int,
        size: int,
        device: Device,
    ) -> GatherTiling | None:
        kinds = units_of(size), (1, 2, 4, 8, 16)
        units, row_warps = (self.random.choice(n) for n in kinds)
        tile = 16 // row_warps * units
        layouts = self._layouts(shape, images, size, tile)
        room = device._replace(shared_per_block=device.shared_per_block - (4096 * size))
        channels = self._channels(shape, layouts, room)
        return channels and GatherTiling(16, units, row_warps, channels, layouts, -1.0)
