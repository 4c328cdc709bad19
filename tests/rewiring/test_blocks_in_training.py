"""Runs of models of blocks: state moves by blocks, budgets hold, and runs go on exactly."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.block_cases import fill, patterns, rows_of
from helpers.cuda_device import emulated
from helpers.cuda_rewire_cases import gpu_rewires
from helpers.method_training import assert_same
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dsr_kernels import named_sparse_modules, sparsify
from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.rewiring import DSR, GMP, SET, SNFS, DeepR, RigL
from dsr_kernels.rewiring.exploration import Exploration
from dsr_kernels.topology import Topology

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True, foreach=True),
}
METHODS = {
    "dsr": (DSR, {"prune_fraction": 0.2, "initial_threshold": 0.01}),
    "dsr exact": (DSR, {"prune_fraction": 0.2, "threshold": "exact", "allocation": "N"}),
    "set": (SET, {"fraction": 0.3}),
    "rigl": (RigL, {"fraction": 0.3, "length": 40}),
    "snfs": (SNFS, {"fraction": 0.3, "stop": 27}),
    "snfs random": (SNFS, {"fraction": 0.3, "stop": 27, "growth": "random"}),
    "gmp": (GMP, {"final_sparsity": 0.9, "begin": 2, "end": 18}),
}


def network(sparsity: float = 0.8, block_size: int = 16) -> nn.Module:
    """Blocks of 16, of 8, and of 2 in a head of 10 classes."""
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    return sparsify(dense, sparsity, block_size=block_size, preset="all")


def layers_of(model: nn.Module) -> list:
    return [module for _, module in named_sparse_modules(model)]


class Training:
    def __init__(self, method: str, optimizer: str = "momentum") -> None:
        self.model = network(0.5 if method == "gmp" else 0.8)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        kind, arguments = METHODS[method]
        self.rewirer = kind(self.model, self.optimizer, every=3, seed=1, **arguments)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        self.rewirer.follow(self.average)

    @property
    def parts(self) -> tuple:
        return self.model, self.optimizer, self.average, self.rewirer

    def run(self, start: int, stop: int) -> list:
        reports = []
        for i in range(start, stop):
            generator = torch.Generator().manual_seed(i)
            x = torch.randn(6, 3, 8, 8, generator=generator)
            labels = torch.randint(10, (6,), generator=generator)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), labels).backward()
            self.optimizer.step()
            self.average.update_parameters(self.model)
            reports.append(self.rewirer.step())
        return [report for report in reports if report]

    def state(self) -> list:
        return copy.deepcopy([part.state_dict() for part in self.parts])

    def load(self, states: list) -> None:
        for part, state in zip(self.parts, copy.deepcopy(states), strict=True):
            part.load_state_dict(state)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_budgets_hold_and_a_resumed_run_is_the_same(method: str, optimizer: str) -> None:
    training = Training(method, optimizer)
    assert [layer.block_size for layer in layers_of(training.model)] == [16, 8, 2]
    before = sum(layer.nnz for layer in layers_of(training.model))
    reports, saved = training.run(0, 10), training.state()
    reports += training.run(10, 20)
    assert len(reports) == 6 and sum(report.pruned for report in reports) > 0
    nnz = sum(layer.nnz for layer in layers_of(training.model))
    carried = getattr(training.rewirer, "carried_over", 0)
    if method == "gmp":
        assert nnz == sum(row.nnz_after for row in reports[-1].layers)
        assert nnz < before
    else:
        assert nnz + carried == before and carried < 16
    for layer, follower in zip(layers_of(training.model), layers_of(training.average), strict=True):
        assert layer.topology.validate().block_size == layer.block_size
        assert torch.equal(layer.col_indices, follower.col_indices)
        assert layer.weight_values.shape == (layer.blocks, layer.block_size)
    resumed = Training(method, optimizer)
    resumed.load(saved)
    resumed.run(10, 20)
    assert_same(resumed.state(), training.state())


@emulated
@pytest.mark.parametrize("method", ["dsr", "dsr exact", "rigl", "snfs", "gmp"])
def test_the_gpus_engine_rewires_alike(method: str) -> None:
    expected, training = Training(method, "adam"), Training(method, "adam")
    wanted = expected.run(0, 10)
    with gpu_rewires() as opened:
        reports = training.run(0, 10)
    assert opened == [3] * len(reports) and len(reports) >= 2
    assert [report.layers for report in reports] == [report.layers for report in wanted]
    assert_same(training.state(), expected.state())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_values_state_and_averages_move_by_blocks(optimizer: str) -> None:
    training = Training("dsr exact", optimizer)
    training.run(0, 2)
    model, average = layers_of(training.model), layers_of(training.average)
    slots = sum(
        v.dim() > 1
        for v in training.optimizer.state[model[0].weight_values].values()
        if torch.is_tensor(v)
    )
    assert slots == {"momentum": 1, "adam": 2, "amsgrad": 3}[optimizer]
    for _ in range(4):
        before = [rows_of(layer, training.optimizer) for layer in model]
        averaged = [rows_of(layer) for layer in average]
        assert training.rewirer.rewire().grown > 0
        for old, layer in zip(before + averaged, model + average, strict=True):
            own = training.optimizer if layer in model else None
            new = rows_of(layer, own)
            width = layer.block_size * (1 + slots if own else 1)
            assert {len(row) for row in new.values()} == {width}
            assert all(new[p] == old[p] for p in set(new) & set(old))
            assert all(not any(new[p]) for p in set(new) - set(old))
        training.run(2, 4)


@pytest.mark.skipif(not hasattr(torch.optim, "Adafactor"), reason="torch before 2.5")
def test_adafactors_row_factors_move_and_its_columns_follow_their_mean() -> None:
    torch.manual_seed(0)
    layer = SparseLinear(30, 32, nnz=320, block_size=8)
    optimizer = torch.optim.Adafactor(layer.parameters(), lr=0.01)
    rewirer = DSR(layer, optimizer, prune_fraction=0.3, threshold="exact")
    for _ in range(5):
        layer(torch.randn(9, 30)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        state = optimizer.state[layer.weight_values]
        assert state["row_var"].shape == (40, 1) and state["col_var"].shape == (1, 8)
        old, columns = rows_of(layer, optimizer), state["col_var"].clone()
        assert rewirer.rewire().pruned == 96
        new = rows_of(layer, optimizer)
        assert all(len(row) == 9 for row in new.values())  # eight weights and a row factor
        assert all(new[p] == old[p] for p in set(new) & set(old))
        assert all(not any(new[p]) for p in set(new) - set(old))
        torch.testing.assert_close(state["col_var"].mean(), state["row_var"].mean())
        scale = state["col_var"] / columns
        torch.testing.assert_close(scale, scale[:, :1].expand(1, 8))


@pytest.mark.parametrize("threshold", ["exact", "adaptive"])
@pytest.mark.parametrize("allocation", ["R", "M", "K"])
def test_no_weight_is_lost_over_many_rewires_of_mixed_blocks(threshold, allocation) -> None:
    model = network(0.6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {"threshold": threshold, "allocation": allocation, "initial_threshold": 0.05}
    rewirer = DSR(model, optimizer, prune_fraction=0.3, **arguments)
    total = sum(layer.nnz for layer in layers_of(model))
    traded = set()
    for step in range(40):
        generator = torch.Generator().manual_seed(step)
        for layer in layers_of(model):
            layer.weight_values.data.normal_(0, 0.1, generator=generator)
        report = rewirer.rewire()
        layers = layers_of(model)
        assert sum(layer.nnz for layer in layers) + rewirer.carried_over == total
        assert all(layer.nnz % layer.block_size == 0 for layer in layers)
        assert rewirer.carried_over < 16 and report.pruned > 0
        traded.add(tuple(layer.nnz for layer in layers))
    assert len(traded) > 1 or allocation == "K"


@pytest.mark.parametrize("threshold", ["exact", "adaptive"])
def test_whole_kernels_of_blocks(threshold: str) -> None:
    torch.manual_seed(0)
    conv, linear = SparseConv2d(4, 16, 3, block_size=8), SparseLinear(16, 20, nnz=96, block_size=4)
    pattern = Topology.random_kernels(conv.weight_shape, 288, block_size=8)
    fill(conv, pattern.linear_positions(), torch.randn(36, 8))
    model = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {"threshold": threshold, "initial_threshold": 0.8, "prune_count": 250}
    rewirer = DSR(model, optimizer, granularity="kernel", allocation="M", **arguments)
    lost = set()
    for _ in range(5):
        scores = conv.weight_values.detach().view(-1, 9 * 8).abs().mean(1)
        old = conv.topology.linear_positions().view(-1, 9)[:, 0].tolist()
        rewirer.rewire()
        kernels = conv.topology.validate().linear_positions().view(-1, 9)
        assert (kernels == kernels[:, :1] + torch.arange(9)).all()
        assert conv.nnz + linear.nnz + rewirer.carried_over == 384
        left = [position in kernels[:, 0].tolist() for position in old]
        lost |= set(old) - set(kernels[:, 0].tolist())
        gone = [s for s, there in zip(scores.tolist(), left, strict=True) if not there]
        stay = [s for s, there in zip(scores.tolist(), left, strict=True) if there]
        assert max(gone, default=0) <= min(stay)  # by their mean magnitudes
        for layer in (conv, linear):
            layer.weight_values.data.normal_()
    assert lost


def test_snfs_keeps_each_layers_number_where_no_block_can_take_what_is_left() -> None:
    """The small blocks' layer draws all growth, is full, and leaves half a block of the other's."""
    torch.manual_seed(0)
    small = SparseLinear(6, 4, nnz=14, block_size=2)  # loses 2, has room for 10
    large = SparseLinear(20, 16, nnz=160, block_size=16)  # loses 32
    model = nn.ModuleList([small, large])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    rewirer = SNFS(model, optimizer, fraction=0.15, length=100, growth="random")
    for layer, momentum in ((small, 1e3), (large, 1e-9)):
        layer(torch.randn(3, layer.in_features)).sum().backward()
        optimizer.step()
        optimizer.state[layer.weight_values]["momentum_buffer"].fill_(momentum)
    report = rewirer.rewire()
    assert [row.pruned for row in report.layers] == [row.grown for row in report.layers] == [2, 32]
    assert (small.nnz, large.nnz) == (14, 160)


def test_deepr_refuses_blocks() -> None:
    model = network()
    with pytest.raises(
        ValueError, match=r"layer '0': DeepR .* the 16 weights of a block have signs"
    ):
        DeepR(model, OPTIMIZERS["momentum"](model.parameters()), length=10)


def test_gmp_refuses_a_global_scope_over_mixed_blocks() -> None:
    model = network(0.5)
    with pytest.raises(
        ValueError, match=r"one block size, these have \[2, 8, 16\]; use scope='layer'"
    ):
        GMP(
            model,
            torch.optim.SGD(model.parameters(), 0.1),
            final_sparsity=0.9,
            end=5,
            scope="global",
        )


def test_exploration_counts_weights() -> None:
    model = network()
    exploration = Exploration(model)
    layers = layers_of(model)
    rewirer = SET(model, OPTIMIZERS["momentum"](model.parameters()), fraction=0.5)
    seen = [set(found) for found in patterns(model)]
    for _ in range(4):
        exploration.update()
        rewirer.rewire()
        seen = [a | set(b) for a, b in zip(seen, patterns(model), strict=True)]
    exploration.update()
    active = sum(len(s) * x.block_size for s, x in zip(seen, layers, strict=True))
    assert exploration.rate == active / sum(layer.numel for layer in layers)
    other = Exploration(model)
    other.load_state_dict(exploration.state_dict())
    assert other.rate == exploration.rate


@pytest.mark.parametrize("size, mode", [(1, "adaptive"), (8, "exact")])
def test_the_usual_threshold_is_by_selection_in_blocks(size: int, mode: str) -> None:
    model = nn.Sequential(SparseLinear(30, 32, nnz=320, block_size=size))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    assert DSR(model, optimizer).mode == mode
    assert DSR(model, optimizer, threshold="adaptive").mode == "adaptive"
