"""Convolutions by the GPU's kernels, under tilings of the test's choice."""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator

import pytest
import torch
from helpers.cuda_device import DEVICE, EMULATED, kernels, queue
from helpers.cuda_planner import (
    COMPUTE_WARPS,
    VECTOR_BYTES,
    Chosen,
    GatherTiling,
    GradWeightTiling,
    Layout,
    PassShape,
    gather_tilings,
    grad_weight_tilings,
    options_of,
)
from helpers.kernel_cases import AWKWARD, BATCHES, CASES
from helpers.nn_cases import dense_results, layer, within_rule
from helpers.prepared import keep_no_calls
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.backends import dispatch, native
from dsr_kernels.backends.cuda import call, calls, fused, launch, plans, tensor_cores
from dsr_kernels.backends.cuda.plans import Device
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.ops import library

EMULATED_GPU = Device(132, 227 << 10)
TWO = Device(2, 227 << 10)  # two thread blocks, so that each has several items of work
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # of activations
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
floats = pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
# Fewer non-zeros where there are many channels: the emulator takes its time for each.
SHAPES = {
    name: (sizes, {**arguments, "sparsity": 0.95} if sizes[0] * sizes[1] > 2000 else arguments)
    for name, (sizes, arguments) in (CASES | BATCHES | AWKWARD).items()
}
Choice = Callable[..., "GatherTiling | GradWeightTiling | None"]


def no_windows(*_) -> None:
    """The kernels without matrix units."""


@contextlib.contextmanager
def gpu_kernels(
    gather: Choice | None = None,
    grad_weight: Choice | None = None,
    device: Device | None = None,
    window_grad_weight: Choice | None = no_windows,
    window_gather: Choice | None = no_windows,
    prepared: bool = False,
) -> Iterator[None]:
    """Inside, layers on DEVICE compute by the GPU's kernels, also where DEVICE is the CPU.

    `gather` and `grad_weight` choose the tilings, for a GPU like `device`, where
    `window_grad_weight` and `window_gather` do not. Without these there are no windows, as nobody
    asks for them; None is what the cost model chooses. Calls are prepared for a second time only if
    `prepared` says so. What torch allocates starts as NaN, so that what nobody writes shows.
    """
    chosen = Chosen(gather, grad_weight, window_gather, window_grad_weight)
    deterministic, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(tensor_cores.SWITCH, "1")
        patch.setattr(native, "_cuda", kernels())
        patch.setattr(dispatch, "gpu_backend", lambda _: launch)
        patch.setattr(library, "cpu", launch)
        patch.setattr(library, "cpu_calls", calls)
        if not prepared:
            keep_no_calls(patch)
        patch.setattr(dispatch, "fused_backend", lambda _: fused)
        if (gather, grad_weight, window_gather, window_grad_weight) != (None,) * 4:
            patch.setattr(plans, "make", chosen.make)
        if EMULATED:
            patch.setattr(call, "queue_of", lambda _: queue())
            patch.setattr(call, "device_of", lambda _: EMULATED_GPU)
        if device is not None:
            patch.setattr(call, "device_of", lambda _: device)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_num_threads(1)  # torch's own small operations mostly wait for other threads
        patterns.clear()  # what they keep belongs to another module or choice
        plans.plan_of.cache_clear()
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
            patterns.clear()
            plans.plan_of.cache_clear()


def conv_and_input(
    sizes: tuple, arguments: dict, dtype: torch.dtype = torch.float32
) -> tuple[SparseConv2d, Tensor]:
    """On DEVICE, in the form of kernel_cases: the layer's values are float64 beside float64."""
    c, o, kernel, size, n = sizes
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    conv = layer(c, o, kernel, dtype=weights, seed=3, **{"sparsity": 0.7, **arguments})
    x = torch.randn(n, c, *size, generator=torch.Generator().manual_seed(7), dtype=weights)
    return conv.to(DEVICE), x.to(DEVICE, dtype)


def forward_and_grad_input(conv: SparseConv2d, x: Tensor, grad: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = conv.requires_grad_(False)(x)
    return [y.detach(), *torch.autograd.grad(y, x, grad)]


def check_grad_weight(conv: SparseConv2d, x: Tensor, grad: Tensor, beside: float = 0.0) -> None:
    """`beside` is within_rule's."""
    (found,) = torch.autograd.grad(conv(x), conv.weight_values, grad)
    same, exact = (
        dense_results(conv, x, grad, d, "cpu")[2] for d in (torch.float32, torch.float64)
    )
    assert within_rule(found.cpu(), same, exact, beside)


# ---- choices ------------------------------------------------------------------------------------


def direct(*_) -> None:
    """The kernels without a slab."""


def small_gather(rows: int, units: int) -> Choice:
    """This instance, with as few positions to a tile as it can, and several slabs."""

    def choose(*problem):
        found = [t for t in gather_tilings(*problem) if (t.rows, t.units) == variant]
        return dataclasses.replace(max(found, key=lambda t: t.row_warps), channel_block=2)

    variant = rows, units
    return choose


def small_grad_weight(units: int) -> Choice:
    """This instance, with several slabs, parts of the output channels and splits."""

    def choose(*problem):
        found = [t for t in grad_weight_tilings(*problem) if t.units == units]
        return dataclasses.replace(found[0], channel_block=2, row_block=9, tiles_per_split=4)

    return choose


def gather_choices(*problem) -> list[GatherTiling]:
    """What there is to choose from, and with few channels in a slab."""
    found = list(gather_tilings(*problem))
    few = [
        dataclasses.replace(t, channel_block=min(b, t.channel_block)) for t in found for b in (1, 3)
    ]
    return _distinct(found + few)


def grad_weight_choices(*problem) -> list[GradWeightTiling]:
    """What there is to choose from, and with few channels in a slab, few tiles in a split."""
    found = list(grad_weight_tilings(*problem))
    few = [dataclasses.replace(t, channel_block=min(3, t.channel_block)) for t in found]
    short = [dataclasses.replace(t, tiles_per_split=n) for t in found + few for n in (1, 2)]
    return _distinct(found + few + short)


def _distinct(tilings: list) -> list:
    return list(dict.fromkeys(dataclasses.replace(tiling, clocks=0.0) for tiling in tilings))


class InTurn:
    """Iterates while any pass has tilings not yet chosen; as a choice, the next of each pass."""

    def __init__(self, tilings: Callable[..., list]) -> None:
        self.tilings = tilings
        self.number = 0
        self.most = 1

    def __iter__(self) -> Iterator[int]:
        while self.number < self.most:
            yield self.number
            self.number += 1
        assert self.most > 10

    def __call__(self, *problem):
        found = self.tilings(*problem)
        self.most = max(self.most, len(found))
        return found[self.number % len(found)]


class AtRandom:
    """Chooses tilings with chunks, pitches, blocks and splits that need not be good ones."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def gather(self, shape: PassShape, images: int, density: float, size: int, device: Device):
        tilings = list(gather_tilings(shape, images, density, size, device))
        if not tilings or self.random.random() < 0.1:
            return None
        tiling = self.random.choice(tilings)
        tile = COMPUTE_WARPS // tiling.row_warps * tiling.units * 32
        layouts = self._layouts(shape, images, size, tile)
        most = self._channels(shape, layouts, device)
        return most and dataclasses.replace(tiling, channel_block=most, layouts=layouts)

    def grad_weight(self, shape: PassShape, images: int, density: float, size: int, device: Device):
        tilings = list(grad_weight_tilings(shape, images, density, size, device))
        if not tilings or self.random.random() < 0.1:
            return None
        tiling = self.random.choice(tilings)
        (layout,) = self._layouts(shape, images, size, tiling.units * 32)
        rows = self.random.randint(1, shape.dest_channels)
        most = self._channels(shape, (layout,), device)
        tiles = self.random.randint(max(1, layout.tiles // 4), layout.tiles)
        return most and GradWeightTiling(tiling.units, most, rows, tiles, layout, 0.0)

    def _layouts(self, shape: PassShape, images: int, size: int, tile: int) -> tuple[Layout, ...]:
        groups = -(-images // (VECTOR_BYTES // size))
        steps = shape.row_step, shape.col_step

        def layout(c) -> Layout:
            width = self.random.randint(1, c.cols)
            return self.random.choice(list(options_of(c, steps, groups, tile, width)))

        return tuple(layout(c) for c in shape.classes)

    def _channels(
        self, shape: PassShape, layouts: tuple[Layout, ...], device: Device
    ) -> int | None:
        plane = max(layout.plane for layout in layouts) * VECTOR_BYTES
        most = min(device.shared_per_block // 2 // plane, shape.source_channels)
        return self.random.randint(1, most) if most else None
