"""No dense weight at any time, measured: peak memory of a process of its own."""

from __future__ import annotations

import sys

import pytest
from helpers.memory import peak_growth

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

PREAMBLE = """
import torch
from torch import nn
from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.rewiring import DSR

def train(model, x):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rewirer = DSR(model, optimizer, prune_fraction=0.1, every=1)
    model(x).square().sum().backward()
    optimizer.step()
    rewirer.rewire()
    optimizer.zero_grad()
    model(x).square().sum().backward()  # on the new pattern
    optimizer.step()

train(nn.Sequential(SparseConv2d(8, 8, 3, padding=1)), torch.randn(1, 8, 4, 4, requires_grad=True))
"""

CASES = {
    # dense: 151 MB for the weight alone, and as much again for its gradient and its momentum
    "conv 2048": [("SparseConv2d(2048, 2048, 3, padding=1, sparsity=0.999)", (1, 2048, 4, 4))],
    # more than 2**31 elements each, 10 GB dense; one after the other in one process
    "beyond int32": [
        ("SparseLinear(70_000, 40_000, nnz=50_000)", (2, 70_000)),
        ("SparseConv2d(16_384, 16_384, 3, padding=1, nnz=50_000)", (1, 16_384, 2, 2)),
    ],
}


@pytest.mark.parametrize("case", CASES)
def test_peak_memory_stays_near_the_baseline(case):
    limit = 60 if case == "conv 2048" else 200  # MB; the wide layers pack wide activations
    steps = [
        f"train(nn.Sequential({layer}), torch.randn({shape}, requires_grad=True))"
        for layer, shape in CASES[case]
    ]
    assert peak_growth(PREAMBLE, "\n".join(steps)) < limit
