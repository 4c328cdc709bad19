"""State of another size than the values: refused before a step could write beyond its end."""

from __future__ import annotations

import pytest
import torch
from helpers.optimizer_cases import (
    BEFORE,
    MOMENTUM,
    another,
    fill,
    idle_step,
    load,
    momentum,
    place,
    replace,
    sgd,
)
from helpers.rewire_models import make_model, train
from torch import nn

from dsr_kernels.nn import SparseLinear, step_check
from dsr_kernels.rewiring import DSR, Static

ONES = torch.ones(6)


FUSED = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, fused=True),
}


def stepped(make, nnz):
    layer = SparseLinear(6, 2, nnz=nnz, bias=False)
    optimizer = make(layer.parameters())
    layer(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    return layer, optimizer


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("name", FUSED)
def test_state_of_another_size_is_refused_at_construction_and_before_a_step(name, size):
    layer, optimizer = stepped(FUSED[name], 5)
    _, other = stepped(FUSED[name], size)
    rewirer = Static(layer, optimizer)
    optimizer.load_state_dict(other.state_dict())
    before = layer.weight_values.detach().clone()
    message = rf"layer '' has shape \({size}, 1\), expected \(5, 1\): cannot .*; load model and"
    for refused in (optimizer.step, lambda: Static(layer, optimizer), optimizer.step):
        with pytest.raises(ValueError, match=message):
            refused()
    assert torch.equal(layer.weight_values, before)
    layer.load_state_dict(another(list(range(size))))
    idle_step(optimizer, layer)
    assert rewirer.nnz == size


def test_a_refused_move_changes_nothing():
    model = nn.Sequential(SparseLinear(6, 2, nnz=6), SparseLinear(2, 6, nnz=6))
    optimizer = sgd(model)
    Static(model, optimizer)
    for layer in model:
        fill(optimizer, layer)
        place(layer, [0, 1, 2], torch.ones(3))
    optimizer.state[model[1].weight_values]["momentum_buffer"] = torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"layer '1' has shape \(4, 1\)"):
        optimizer.step()
    assert momentum(optimizer, model[0]) == MOMENTUM


def test_another_size_without_a_rewirer_is_refused_before_the_step():
    for change in (load, replace):
        layer, optimizer = stepped(FUSED["adamw"], 3)
        change(layer, BEFORE)
        message = r"'exp_avg' of SparseLinear of .* has shape \(3, 1\), but its weight_values"
        for _ in range(2):
            with pytest.raises(RuntimeError, match=message):
                idle_step(optimizer, layer)
        optimizer.state.clear()
        idle_step(optimizer, layer)
        change(layer, [1, 2])  # again
        with pytest.raises(RuntimeError, match=r"has shape \(6, 1\)"):
            idle_step(optimizer, layer)


def test_an_optimizer_is_looked_at_once_after_a_change_of_sizes(monkeypatch):
    layer, optimizer = stepped(FUSED["adamw"], 3)
    optimizer.state.clear()
    load(layer, BEFORE)
    looks, look = [], step_check._look
    monkeypatch.setattr(step_check, "_look", lambda *a: looks.append(a) or look(*a))
    for _ in range(3):
        idle_step(optimizer, layer)
    assert len(looks) == 1


def test_a_checkpoint_of_another_size_names_the_layer():
    model = nn.Sequential(nn.ReLU(), SparseLinear(6, 2, nnz=3, bias=False))
    optimizer = FUSED["adamw"](model.parameters())
    idle_step(optimizer, model[1])
    model.load_state_dict({f"1.{key}": value for key, value in another(BEFORE).items()})
    with pytest.raises(RuntimeError, match="'exp_avg' of layer '1' has shape"):
        idle_step(optimizer, model[1])


def test_loading_before_the_first_step_and_rewires_are_no_concern():
    model = make_model()
    model.load_state_dict(make_model(1).state_dict())
    layer = SparseLinear(6, 2, nnz=3, bias=False)
    load(layer, BEFORE)
    optimizer = FUSED["adamw"](layer.parameters())
    idle_step(optimizer, layer)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rewirer = DSR(model, optimizer, prune_fraction=0.3, every=1)
    sizes = model[0].nnz
    train(model, optimizer, rewirer, 4)
    assert model[0].nnz != sizes


def test_another_optimizer_with_the_same_parameter_is_refused_after_a_rewire():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    forgotten = torch.optim.AdamW([model[3].weight_values], fused=True)
    rewirer = DSR(model, optimizer, prune_fraction=0.3, every=10)
    train(model, optimizer, rewirer, 1)
    model[3].weight_values.grad = torch.zeros_like(model[3].weight_values)
    forgotten.step()
    size = model[3].nnz
    rewirer.rewire()
    assert model[3].nnz != size
    model[3].weight_values.grad = torch.zeros_like(model[3].weight_values)
    optimizer.step()
    with pytest.raises(RuntimeError, match=rf"of layer '3' has shape \({size}, 1\), but its"):
        forgotten.step()
