"""Times rewires of a ResNet-50, drawing a pattern, and building all plans anew.

    python -m pytest benchmarks/bench_rewire.py --benchmark-json=rewire.json

Times are recorded and never asserted. What is asserted is that the non-zeros add up.
"""

import pytest
import torch
from torch import nn

from dsr_kernels.backends.native import _C
from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.rewiring import DSR

STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # width and blocks


def resnet50_layers(sparsity: float) -> nn.Module:
    """The sparse layers of ResNet-50 (22,724,608 positions), without anything between them."""
    layers: list[nn.Module] = []
    channels = 64
    for width, blocks in STAGES:
        for _ in range(blocks):
            layers += [
                SparseConv2d(channels, width, 1, bias=False, sparsity=sparsity),
                SparseConv2d(width, width, 3, bias=False, sparsity=sparsity),
                SparseConv2d(width, 4 * width, 1, bias=False, sparsity=sparsity),
            ]
            channels = 4 * width
    layers.append(SparseLinear(channels, 1000, bias=False, sparsity=sparsity))
    return nn.ModuleList(layers)


@pytest.mark.parametrize("threshold", ["adaptive", "exact"])
@pytest.mark.parametrize("sparsity", [0.9, 0.8])
def test_rewire_resnet50(benchmark, sparsity, threshold):
    torch.manual_seed(0)
    model = resnet50_layers(sparsity)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    rewirer = DSR(model, optimizer, prune_count=400_000, threshold=threshold)
    nnz = rewirer.nnz

    def refresh() -> None:
        """Draws weights like those of training: none is 0, so the threshold finds its way."""
        for parameter in model.parameters():
            parameter.data.normal_(std=0.05)

    if threshold == "adaptive":
        for _ in range(12):  # until H prunes about the target, as after the first epochs
            refresh()
            rewirer.rewire()
    report = benchmark.pedantic(rewirer.rewire, setup=refresh, rounds=20, warmup_rounds=2)
    assert report.pruned == report.grown > 100_000
    assert rewirer.nnz == nnz == sum(layer.nnz_after for layer in report.layers)
    benchmark.extra_info.update(nnz=nnz, moved=report.pruned, threads=torch.get_num_threads())


@pytest.mark.parametrize("nnz", [100_000, 1_000_000])
def test_sample_pattern(benchmark, nnz):
    layer = benchmark.pedantic(SparseLinear, (10_000, 1000), {"nnz": nnz}, rounds=5)
    assert layer.nnz == nnz


def test_plans_of_resnet50(benchmark):
    """Builds what the first forward after a rewire builds, here for 14x14 inputs of all layers."""
    patterns = [
        ((*layer.weight_shape, 1, 1)[:4], layer.crow_indices, layer.col_indices)
        for layer in resnet50_layers(0.9)
    ]

    def build() -> list[_C.ConvPlan]:
        return [
            _C.ConvPlan(
                *(shape[0], shape[1], 14, 14, shape[2:], (1, 1), (shape[2] // 2,) * 2, (14, 14)),
                *((1, 1), 1, crow.data_ptr(), col.data_ptr(), col.numel(), "float32"),
            )
            for shape, crow, col in patterns
        ]

    plans = benchmark.pedantic(build, rounds=10, warmup_rounds=1)
    benchmark.extra_info["bytes"] = sum(plan.bytes for plan in plans)
