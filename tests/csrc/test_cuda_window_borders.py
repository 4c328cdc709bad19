"""Blocks that lie across two groups, by the GPU's matrix units.

Layers have whole blocks in each group. The ops take any pattern whose rows are whole blocks.
"""

from __future__ import annotations

import pytest
import torch
from helpers.cuda_conv_cases import TWO, direct, gpu_kernels
from helpers.cuda_device import DEVICE
from helpers.cuda_planner import window_grad_weight_tilings
from helpers.cuda_window_cases import model, small
from helpers.nn_cases import within_rule

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.ops import library, reference
from dsr_kernels.topology import Topology

CASES = [(32, 4, 16), (24, 2, 8), (96, 2, 32)]  # O, groups, values of a block
TORCHS = (torch.float32, torch.float64)


@pytest.mark.parametrize("choice", [model, small(8)], ids=["model", "several slabs"])
@pytest.mark.parametrize("outputs, groups, size", CASES)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_blocks_across_groups(
    outputs: int, groups: int, size: int, choice, dtype: torch.dtype
) -> None:
    shape = ConvShape((outputs, 8, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), groups)
    generator = torch.Generator().manual_seed(3)
    half = outputs * 8 * 9 // size // 2 * size
    topology = Topology.random(shape.weight_shape, half, block_size=size, generator=generator)
    pattern = topology.crow_indices.to(DEVICE), topology.col_indices.to(DEVICE)
    draw = [(9, 8 * groups, 5, 6), (half // size, size), (9, outputs, 5, 6)]
    x, values, grad = (torch.randn(s, generator=generator).bfloat16().to(DEVICE) for s in draw)
    values, taken = values.float(), []  # numbers of bfloat16 are numbers of TF32
    x, grad = x.to(dtype), grad.to(dtype)

    def gather(*problem):
        taken.append("gather")
        return choice(*problem)

    def grad_weight(*problem):
        taken.append("grad_weight")
        return min(window_grad_weight_tilings(*problem), key=lambda t: t.clocks)

    with gpu_kernels(direct, direct, TWO, grad_weight, gather):
        found = (
            library.sparse_conv2d(x, values, None, *pattern, shape),
            library.sparse_conv2d_grad_input(grad, values, *pattern, x.shape[1:], shape, False),
            library.sparse_conv2d_grad_weight(x, grad, *pattern, shape, torch.float32),
        )
    assert taken == ["gather", "gather", "grad_weight"]
    pattern = tuple(t.cpu() for t in pattern)
    same, exact = (expected(x, values, grad, pattern, shape, d) for d in TORCHS)
    for ours, *torchs in zip(found, same, exact, strict=True):
        assert within_rule(ours.cpu().view_as(torchs[0]), *torchs)


def expected(x, values, grad, pattern, shape, dtype) -> tuple[torch.Tensor, ...]:
    x, values, grad = (t.cpu().to(dtype) for t in (x, values, grad))
    return (
        reference.sparse_conv2d(x, values, None, *pattern, *shape),
        reference.sparse_conv2d_grad_input(grad, values, *pattern, x.shape[1:], *shape),
        reference.sparse_conv2d_grad_weight(x, grad, *pattern, *shape),
    )
