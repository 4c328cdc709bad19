"""Forward + backward of single layers through autograd: ours against dense in both memory formats.

Run with `make bench`. Speed is recorded, correctness asserted.
"""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from alternating import compare
from torch import nn

from dsr_kernels.nn import SparseConv2d, SparseLinear

BATCH = 128
REPETITIONS = 15
SPARSITIES = (0.5, 0.8, 0.9, 0.95)
# in, out, size, kernel, stride: every 3x3 geometry of WRN-28-2, and the pointwise ones of ResNet-50
CONVS = {
    "16->32 32x32": (16, 32, 32, 3, 1),
    "32->32 32x32": (32, 32, 32, 3, 1),
    "32->64 32x32 /2": (32, 64, 32, 3, 2),
    "64->64 16x16": (64, 64, 16, 3, 1),
    "64->128 16x16 /2": (64, 128, 16, 3, 2),
    "128->128 8x8": (128, 128, 8, 3, 1),
}
POINTWISE = {"256->64 56x56 1x1": (256, 64, 56, 1, 1), "512->128 28x28 1x1": (512, 128, 28, 1, 1)}


def compare_layers(benchmark, dense: nn.Module, sparse: nn.Module, x: torch.Tensor) -> None:
    """Forward + backward of each layer, the dense convolution in both memory formats."""
    gradient = torch.randn_like(dense(x))
    arguments = {"sparse": (sparse, x, gradient), "dense": (dense, x, gradient)}
    if x.dim() == 4:
        last = {"memory_format": torch.channels_last}
        twin = copy.deepcopy(dense).to(**last)
        arguments["dense channels_last"] = (twin, x.to(**last), gradient.to(**last))

    def run(module: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> None:
        module(x.detach().requires_grad_()).backward(gradient)

    runs = {name: functools.partial(run, *each) for name, each in arguments.items()}
    compare(benchmark, runs, REPETITIONS)
    benchmark.extra_info["nnz"] = sparse.nnz


def assert_right(dense: nn.Module, sparse: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        dense.weight.copy_(sparse.to_dense())
        dense.bias.copy_(sparse.bias)
        torch.testing.assert_close(sparse(x[:2]), dense(x[:2]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("layer", [*CONVS, *POINTWISE])
def test_conv(benchmark, layer: str, sparsity: float) -> None:
    in_channels, out_channels, size, kernel, stride = (CONVS | POINTWISE)[layer]
    geometry = (in_channels, out_channels, kernel, stride, kernel // 2)
    dense, sparse = nn.Conv2d(*geometry), SparseConv2d(*geometry, sparsity=sparsity)
    x = torch.randn(BATCH if layer in CONVS else 16, in_channels, size, size)
    assert_right(dense, sparse, x)
    compare_layers(benchmark, dense, sparse, x)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_linear(benchmark, sparsity: float) -> None:
    dense, sparse = nn.Linear(1024, 1024), SparseLinear(1024, 1024, sparsity=sparsity)
    x = torch.randn(512, 1024)
    assert_right(dense, sparse, x)
    compare_layers(benchmark, dense, sparse, x)
