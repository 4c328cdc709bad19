"""Rewiring on the GPU: to the bit what the CPU does with the same weights and momentum."""

from __future__ import annotations

import copy
import math
from statistics import median

import pytest
import torch
from helpers.rewire_cases import Case, layers
from helpers.rewire_models import assert_same, make_model, snapshot
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dsr_kernels import SparseConv2d, SparseLinear, named_sparse_modules
from dsr_kernels.models import resnet50
from dsr_kernels.rewiring import DSR, GMP, SET, SNFS, RigL, Static

from .device import DEVICE, ON_CUDA, synchronize

pytestmark = pytest.mark.gpu
Parts = tuple[nn.Module, torch.optim.Optimizer, DSR]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "fused momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "fused adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
}
HOW = {
    "adaptive": {"prune_count": 40, "threshold": "adaptive", "initial_threshold": 0.01},
    "exact": {"prune_fraction": 0.3, "threshold": "exact"},
}

OTHERS = {
    "set": (SET, {"fraction": 0.3}),
    "rigl": (RigL, {"fraction": 0.3, "length": 9}),
    "snfs": (SNFS, {"fraction": 0.3, "length": 9}),
    "gmp": (GMP, {"final_sparsity": 0.9, "end": 4}),
    "gmp global": (GMP, {"final_sparsity": 0.9, "end": 4, "scope": "global"}),
}


def parts_of(model: nn.Module, optimizer: str, how: str) -> Parts:
    made = OPTIMIZERS[optimizer](model.parameters())
    return model, made, DSR(model, made, every=10**9, seed=5, **HOW[how])


def on_the_cpu(parts: Parts, optimizer: str, how: str) -> Parts:
    """Copies of model, optimizer and rewirer, on the CPU and in the same state."""
    twin = parts_of(copy.deepcopy(parts[0]).cpu(), optimizer, how)
    for copied, original in zip(twin[1:], parts[1:], strict=True):
        copied.load_state_dict(copy.deepcopy(original.state_dict()))
    return twin


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    device = next(model.parameters()).device
    for i in range(first, first + steps):
        x = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(i)).to(device)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def state_of(parts: Parts) -> tuple:
    """Weights, patterns, optimizer state and the rewirer's, on the CPU."""
    model, optimizer, rewirer = parts
    tensors = {name: t.cpu() for name, t in model.state_dict().items()}
    for i, parameter in enumerate(model.parameters()):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{i} {key}"] = torch.as_tensor(value).cpu()
    return tensors, rewirer.state_dict()


def assert_same_bits(ones: Parts, others: Parts) -> None:
    (one, one_rewirer), (other, other_rewirer) = state_of(ones), state_of(others)
    assert one_rewirer == other_rewirer
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_rewire_of_a_training_equals_the_cpus(optimizer: str, how: str) -> None:
    parts = parts_of(make_model().to(DEVICE), optimizer, how)
    moved = 0
    for turn in range(6):
        train(*parts[:2], 3, first=3 * turn)
        twin = on_the_cpu(parts, optimizer, how)
        ours, theirs = parts[2].rewire(), twin[2].rewire()
        assert_same_bits(parts, twin)
        assert ours.layers == theirs.layers
        assert (ours.threshold, ours.next_threshold) == (theirs.threshold, theirs.next_threshold)
        assert all(p.device == DEVICE for p in parts[0].parameters())
        moved += ours.pruned
    assert moved > 0
    train(*parts[:2], 3)


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_methods_rewire_as_on_the_cpu(name: str) -> None:
    """Inputs and gradients are small whole numbers, momentum halves them: no device rounds."""
    both = []
    for device in (DEVICE, "cpu"):
        torch.manual_seed(0)
        linear, conv = SparseLinear(40, 30, nnz=300), SparseConv2d(6, 8, 3, padding=1, nnz=100)
        model = nn.ModuleList([linear, conv]).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.5)
        kind, arguments = OTHERS[name]
        rewirer, reports = kind(model, optimizer, every=1, seed=3, **arguments), []
        for turn in range(3):
            generator = torch.Generator().manual_seed(turn)
            optimizer.zero_grad()
            for layer, size in zip(model, ((5, 40), (2, 6, 7, 7)), strict=True):
                y = layer(torch.randint(-2, 3, size, generator=generator).float().to(device))
                grad = torch.randint(-2, 3, y.shape, generator=generator).float().to(device)
                y.backward(grad)
            optimizer.step()
            reports.append(rewirer.step().layers)
        both.append(((model, optimizer, rewirer), reports))
    (ours, reports), (theirs, wanted) = both
    assert_same_bits(ours, theirs)
    assert reports == wanted and all(any(row.pruned for row in report) for report in reports)


def model_of(cases: list[Case]) -> nn.Module:
    model = nn.Sequential()
    for case in cases:
        empty = {"bias": False, "dtype": case.values.dtype, "nnz": case.nnz}
        linear = SparseLinear(case.row_length, case.rows, **empty)
        linear.replace_topology(case.crow, case.col, case.values)
        model.append(linear)
    return model


@pytest.mark.sanitizer
@settings(max_examples=25, deadline=None, derandomize=True)
@given(layers(), st.one_of(st.sampled_from([1e-9, 0.1, 0.5, 1.5]), st.integers(1, 80)))
def test_layers_full_of_ties(cases: list[Case], how_much: float) -> None:
    """From empty to full, on a coarse grid of weights; momentum shows which entry went where."""
    total = sum(case.nnz for case in cases)
    assume(total > 0)
    exact = isinstance(how_much, int)
    how = {"threshold": "adaptive", "initial_threshold": how_much, "prune_count": 1}
    if exact:
        how = {"threshold": "exact", "prune_count": min(how_much, total)}
    both = []
    for device in (DEVICE, "cpu"):
        model = model_of(copy.deepcopy(cases)).to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for (_, module), case in zip(named_sparse_modules(model), cases, strict=True):
            momentum = case.momentum.to(device, case.values.dtype)
            optimizer.state[module.weight_values]["momentum_buffer"] = momentum
        rewirer = DSR(model, optimizer, seed=total, **how)
        rewirer.rewire()
        both.append((model, optimizer, rewirer))
    assert_same_bits(*both)


@pytest.mark.parametrize("threshold", ["adaptive", "exact"])
def test_a_resnet_50_and_how_long_it_takes(threshold: str, note) -> None:
    torch.manual_seed(0)
    model = resnet50(0.9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for p in model.parameters():
        p.data.normal_(std=0.05)
        optimizer.state[p]["momentum_buffer"] = torch.randn_like(p)
    how = {"prune_fraction": 0.1, "threshold": threshold, "initial_threshold": 0.006}
    twin = copy.deepcopy((model, optimizer))
    twin = (*twin, DSR(*twin, **how))
    model.to(DEVICE)
    for state in optimizer.state.values():
        state["momentum_buffer"] = state["momentum_buffer"].to(DEVICE)
    parts = (model, optimizer, DSR(model, optimizer, **how))
    seconds = []
    for turn in range(1 + 4 * ON_CUDA):
        if turn:  # weights like those of training: none is zero
            for p in model.parameters():
                p.data.normal_(std=0.05)
        synchronize()
        report = parts[2].rewire()
        seconds.append(report.seconds)
        assert report.pruned > 0.05 * parts[2].nnz
        if not turn:
            twins = twin[2].rewire()
            assert twins.layers == report.layers
            assert_same_bits(parts, twin)
    note(
        f"rewire of ResNet-50 at 90 %, {threshold}: {1e3 * median(seconds[1:] or seconds):.1f} ms "
        f"on {DEVICE.type} ({1e3 * twins.seconds:.1f} ms on the CPU, once)"
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_weight_stops_the_rewire_before_anything_changes(bad: float) -> None:
    parts = parts_of(make_model().to(DEVICE), "fused adam", "exact")
    model, _, rewirer = parts
    train(*parts[:2], 3)
    model[3].weight_values.data[17] = bad
    before = snapshot(*parts)
    with pytest.raises(ValueError, match=r"layer '3': the weight at row \d+, column \d+ is"):
        rewirer.rewire()
    assert_same(before, snapshot(*parts))
    model[3].weight_values.data[17] = 0.5
    assert rewirer.rewire().pruned > 0


def test_an_average_on_the_device_follows() -> None:
    parts = parts_of(make_model().to(DEVICE), "nesterov", "exact")
    model, _, rewirer = parts
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    rewirer.follow(average)
    train(*parts[:2], 2)
    average.update_parameters(model)
    twin = on_the_cpu(parts, "nesterov", "exact")
    twin_average = copy.deepcopy(average).cpu()
    twin[2].follow(twin_average)
    rewirer.rewire(), twin[2].rewire()
    for name, tensor in average.state_dict().items():
        assert torch.equal(tensor.cpu(), twin_average.state_dict()[name]), name
    average(torch.randn(2, 3, 6, 6, device=DEVICE))


def test_a_backward_through_the_pattern_before_is_refused() -> None:
    parts = parts_of(make_model().to(DEVICE), "sgd", "exact")
    loss = parts[0](torch.randn(4, 3, 6, 6, device=DEVICE)).sum()
    parts[2].rewire()
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        loss.backward()


def test_a_resumed_run_equals_the_uninterrupted_one() -> None:
    parts = parts_of(make_model().to(DEVICE), "fused adam", "adaptive")
    train(*parts[:2], 3)
    parts[2].rewire()
    second = parts_of(make_model(seed=1).to(DEVICE), "fused adam", "adaptive")
    for part, original in zip(second, parts, strict=True):
        part.load_state_dict(copy.deepcopy(original.state_dict()))
    for each in parts, second:
        train(*each[:2], 3, first=3)
        each[2].rewire()
    assert_same_bits(parts, second)


def test_static_touches_nothing() -> None:
    model = make_model().to(DEVICE)
    before = copy.deepcopy(model.state_dict())
    rewirer = Static(model)
    assert [rewirer.step() for _ in range(3)] == [None] * 3
    assert rewirer.rewire().pruned == 0
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
