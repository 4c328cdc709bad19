"""DSR and Static on models that the GPU's engine rewires."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from helpers.cuda_device import DEVICE, emulated
from helpers.cuda_rewire_cases import gpu_rewires, same_bits
from helpers.rewire_models import OPTIMIZERS, make_model, train
from torch import nn

from dsr_kernels.backends import native
from dsr_kernels.nn import SparseConv2d, named_sparse_modules
from dsr_kernels.rewiring import DSR, Static
from dsr_kernels.rewiring import plan as plans


def start(name: str, threshold: str, **arguments):
    """A model, its optimizer, an average of it, and their rewirer."""
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    average = copy.deepcopy(model)
    if threshold == "adaptive":
        arguments["initial_threshold"] = 0.02
    rewirer = DSR(model, optimizer, prune_fraction=0.3, threshold=threshold, seed=3, **arguments)
    rewirer.follow(average)
    return model, optimizer, average, rewirer


def tensors_of(model, optimizer, average) -> list[torch.Tensor]:
    tensors = [*model.state_dict().values(), *average.state_dict().values()]
    for _, module in named_sparse_modules(model):
        tensors += [v for v in optimizer.state[module.weight_values].values() if torch.is_tensor(v)]
    return tensors


def facts(report):
    return report.threshold, report.next_threshold, report.layers


@emulated
@pytest.mark.parametrize(("name", "threshold"), [("nesterov", "adaptive"), ("amsgrad", "exact")])
def test_a_training_run_equals_the_cpus(name, threshold):
    *expected, cpu = start(name, threshold, every=2)
    wanted = train(expected[0], expected[1], cpu, 10)
    *parts, rewirer = start(name, threshold, every=2)
    with gpu_rewires() as opened:
        reports = train(parts[0], parts[1], rewirer, 10)
    assert opened == [2] * 5
    assert [facts(r) for r in reports if r] == [facts(r) for r in wanted if r]
    for tensor, other in zip(tensors_of(*parts), tensors_of(*expected), strict=True):
        assert same_bits(tensor, other)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw_foreach"])
@pytest.mark.parametrize("threshold", ["adaptive", "exact"])
def test_rewires_equal_the_cpus(name, threshold):
    """From the same state, without the passes between, which round differently on a GPU."""
    *expected, cpu = start(name, threshold)
    train(expected[0], expected[1], cpu, 3)
    *parts, rewirer = start(name, threshold)
    train(parts[0], parts[1], rewirer, 3)
    model, optimizer, average = parts
    for module in (model, average):
        module.to(DEVICE)
    optimizer.load_state_dict(optimizer.state_dict())  # moves it where the parameters are
    for step in range(3):
        with gpu_rewires():
            report = rewirer.rewire()
        assert facts(report) == facts(cpu.rewire()) and report.pruned > 0
        for tensor, other in zip(tensors_of(*parts), tensors_of(*expected), strict=True):
            assert same_bits(tensor, other)
        for one in (model, expected[0]):  # so that what has grown is pruned again
            for _, module in named_sparse_modules(one):
                drawn = torch.randn(module.nnz, 1, generator=torch.Generator().manual_seed(step))
                module.weight_values.data += drawn.mul_(0.05).to(DEVICE if one is model else "cpu")


def test_models_of_both_dtypes():
    reports, models = [], []
    for on_gpu in (False, True):
        generator = torch.Generator().manual_seed(0)
        model = nn.Sequential(
            *(
                SparseConv2d(16, 40, 3, sparsity=0.4, generator=generator, dtype=dtype)
                for dtype in (torch.float32, torch.float64)
            )
        )
        model.to(DEVICE if on_gpu else "cpu")
        rewirer = DSR(model, OPTIMIZERS["sgd"](model.parameters()), threshold="exact")
        if on_gpu:
            with gpu_rewires():
                reports.append(rewirer.rewire())
        else:
            reports.append(rewirer.rewire())
        models.append(model)
    assert facts(reports[0]) == facts(reports[1])
    for a, b in zip(*(model.state_dict().values() for model in models), strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_failed_rewire_changes_nothing(bad):
    model, optimizer, average, rewirer = start("adam", "adaptive", every=1)
    model[3].weight_values.data[17] = bad
    for module in (model, average):
        module.to(DEVICE)
    before = copy.deepcopy(model.state_dict()), rewirer.state_dict()
    message = r"layer '3': the weight at row \d+, column \d+ is"
    with gpu_rewires(), pytest.raises(ValueError, match=message):
        rewirer.step()
    for old, new in zip(before[0].values(), model.state_dict().values(), strict=True):
        assert same_bits(old, new)
    assert rewirer.state_dict() == before[1] and len(optimizer.state) == 0


@emulated
def test_static_and_frozen_models_need_no_kernels():
    model = make_model()
    rewirer = DSR(model, OPTIMIZERS["sgd"](model.parameters()))
    with gpu_rewires() as opened:
        assert Static(model).rewire().pruned == 0
        for _, module in named_sparse_modules(model):
            module.weight_values.requires_grad_(False)
        assert rewirer.rewire().layers == []
    assert opened == [0]


def on(device: str, name: str = "a") -> SimpleNamespace:
    return SimpleNamespace(name=name, weight_values=SimpleNamespace(device=torch.device(device)))


def test_where_layers_may_be(monkeypatch):
    with pytest.raises(ValueError, match=r"layers 'a' and 'b': .* got cuda:1 and cpu"):
        plans.open_plan([on("cuda:1"), on("cuda:1"), on("cpu", "b")], [])
    monkeypatch.setattr(native, "_cuda", None)
    with pytest.raises(NotImplementedError, match="cuda:0 needs the CUDA kernels"):
        plans.open_plan([on("cuda:0")], [])
