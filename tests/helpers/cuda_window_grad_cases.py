"""Grad-weight by the GPU's matrix units, under tilings of the test's choice."""

from __future__ import annotations

import contextlib
import dataclasses
import random

import pytest
import torch
from helpers.cuda_conv_cases import TWO, check_grad_weight, conv_and_input, direct, gpu_kernels
from helpers.cuda_device import EMULATED
from helpers.cuda_planner import window_grad_weight_tilings
from helpers.formats import gradient_of
from helpers.matrix_units import as_operand, truncation
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.backends.cuda import call
from dsr_kernels.backends.cuda.plans import PassPlan

# Windows that end early and several of them, groups, strides, dilation, several slabs.
CASES = {
    "ragged windows": ((6, 41, 3, (5, 9), 9), {"padding": 1, "sparsity": 0.8}),
    "groups, stride (2, 3)": (
        (12, 66, (3, 2), (8, 11), 13),
        {"padding": 1, "stride": (2, 3), "groups": 3, "sparsity": 0.5},
    ),
    "dilation": ((9, 16, 3, (7, 6), 8), {"padding": 2, "dilation": 2, "sparsity": 0.6}),
    "1 x 1": ((40, 24, 1, (5, 9), 7), {"sparsity": 0.7}),
}
# Two thread blocks at least, each with several tiles and steps, and a warp with several turns.
SMALL = (4, 20, 3, (9, 8), 9), {"padding": 1, "stride": 2, "sparsity": 0.2}


def problem(
    sizes: tuple, arguments: dict, dtype: torch.dtype
) -> tuple[SparseConv2d, Tensor, Tensor]:
    """A layer, its input and its output's gradient; of float32, numbers of TF32."""
    conv, x = conv_and_input(sizes, arguments, dtype)
    return conv, as_operand(x), as_operand(gradient_of(conv, x))


def windows(choose=None, device=TWO) -> contextlib.AbstractContextManager:
    """Inside, every grad-weight that can goes by windows; by the tiling that `choose` picks."""
    choose = choose or (lambda found: min(found, key=lambda t: t.clocks))

    def chosen(*problem):
        found = list(window_grad_weight_tilings(*problem))
        return choose(found) if found else None

    return gpu_kernels(grad_weight=direct, window_grad_weight=chosen, device=device)


def choices(*problem) -> list:
    """What there is to choose from, and with few channels in a slab, few tiles in a split.

    Also with a single warp that computes: it has more turns than it has registers for.
    """
    found = list(window_grad_weight_tilings(*problem))
    few = [dataclasses.replace(t, channel_block=min(3, t.channel_block)) for t in found]
    few += [dataclasses.replace(t, compute_warps=1) for t in found]
    short = [dataclasses.replace(t, tiles_per_split=n) for t in few for n in (1, 2)]
    cut = [dataclasses.replace(t, clocks=0.0) for t in found + few + short]
    return list(dict.fromkeys(cut))


def some(*problem) -> list:
    found = choices(*problem)
    return random.Random(5).sample(found, min(24, len(found)))


def check_sums(conv: SparseConv2d, x: Tensor, grad: Tensor) -> None:
    """check_grad_weight, with what a GPU's matrix units cut off."""
    check_grad_weight(conv, x, grad, 0.0 if EMULATED else truncation(conv, grad)[2])


@pytest.fixture
def taken(monkeypatch):
    """The plans of passes by windows that ran; there must be some."""
    found, grad_weight = [], call.grad_weight

    def noted(*arguments, **more):
        found.extend([plan] if (plan := arguments[4]).kind == "window" else [])
        return grad_weight(*arguments, **more)

    monkeypatch.setattr(call, "grad_weight", noted)
    return found


def launched(plan: PassPlan) -> dict:
    """The numbers of a plan's only launch."""
    (launch,) = plan.native.describe()["launches"]
    return launch
