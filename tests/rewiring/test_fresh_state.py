"""Grown weights start where a fresh optimizer would, whatever its state starts at."""

from __future__ import annotations

import pytest
import torch
from helpers.optimizer_cases import AFTER, WRAPPERS, Planned, RMSpropTF, small_layer
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from dsr_kernels import sparsify
from dsr_kernels.rewiring import DSR
from dsr_kernels.rewiring.fresh import fresh_values

GROWN = [3, 4]  # of AFTER


def trained(make):
    """A rewired layer whose state is far from fresh, and its optimizer."""
    layer = small_layer()
    optimizer = make(layer.parameters())
    for i in range(3):
        layer.weight_values.grad = torch.arange(1.0, 7.0)[:, None] * (-1) ** i
        optimizer.step()
    with torch.no_grad():
        layer.weight_values.copy_(small_layer().weight_values)
    rewirer = Planned(layer, optimizer)
    rewirer.rewire()
    assert layer.topology.linear_positions().tolist() == AFTER
    return layer, optimizer


def first_moves(make, grad: float) -> list[float]:
    """How far the two grown weights move in their first step."""
    layer, optimizer = trained(make)
    layer.weight_values.grad = torch.full_like(layer.weight_values, grad)
    optimizer.step()
    return layer.weight_values[GROWN].flatten().tolist()


def fresh_move(make, grad: float) -> float:
    weight = nn.Parameter(torch.zeros(2, 1))
    optimizer = make([weight])
    weight.grad = torch.full_like(weight, grad)
    optimizer.step()
    return weight[0].item()


class Subclass(torch.optim.Rprop):
    """Whose constructor wants what no group has."""

    def __init__(self, params, name, lr):
        super().__init__(params, lr=lr)


MAKE = {
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "Rprop, lr a tensor": lambda p: torch.optim.Rprop(p, lr=torch.tensor(0.01)),
    "a subclass of Rprop": lambda p: Subclass(p, "mine", 0.01),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "Adagrad from 0": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "RMSpropTF": lambda p: RMSpropTF(p),
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_grown_weight_moves_as_under_a_fresh_optimizer(name):
    moves = first_moves(MAKE[name], 0.5)
    assert moves == pytest.approx([fresh_move(MAKE[name], 0.5)] * 2, rel=1e-6)


def test_the_first_move_under_rprop_is_the_learning_rate():
    assert first_moves(MAKE["Rprop"], 0.5) == pytest.approx([-0.01, -0.01])


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_inner_optimizer_says_where_its_state_starts(name):
    layer = small_layer()
    inner = torch.optim.Rprop(layer.parameters(), lr=0.01)
    layer.weight_values.grad = torch.ones(6, 1)
    inner.step()
    inner.state[layer.weight_values]["step_size"].fill_(0.5)
    inner.state[layer.weight_values]["slow"] = torch.ones(6, 1)
    with torch.no_grad():
        layer.weight_values.copy_(small_layer().weight_values)
    Planned(layer, WRAPPERS[name](inner)).rewire()
    state = inner.state[layer.weight_values]
    assert state["step_size"].flatten().tolist() == pytest.approx([0.5, 0.5, 0.5, 0.01, 0.01, 0.5])
    assert state["slow"].flatten().tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 1.0]


def test_survivors_keep_their_state():
    layer, optimizer = trained(MAKE["Rprop"])
    steps = optimizer.state[layer.weight_values]["step_size"].flatten().tolist()
    assert steps[3:5] == pytest.approx([0.01, 0.01])
    assert all(step < 0.009 for step in steps[:3] + steps[5:])


def test_the_present_learning_rate_counts():
    layer, optimizer = trained(MAKE["Rprop"])
    optimizer.param_groups[0]["lr"] = 0.002
    with torch.no_grad():
        layer.weight_values.copy_(torch.tensor([[2.0], [3], [4], [5], [0.1], [0.2]]))
    Planned(layer, optimizer).rewire()  # 7 and 9 go, 6 and 10 grow
    steps = optimizer.state[layer.weight_values]["step_size"].flatten().tolist()
    assert steps[4:] == pytest.approx([0.002, 0.002]) and steps[3] == pytest.approx(0.01)


@pytest.mark.parametrize("granularity", ["weight", "kernel"])
def test_whole_kernels_and_layers_that_grow_start_fresh(granularity):
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    model = sparsify(dense, 0.5, keep="kernels", preset="all")
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.01)
    rewirer = DSR(model, optimizer, prune_fraction=0.3, threshold="exact", granularity=granularity)
    for _ in range(2):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    before = [set(layer.topology.linear_positions().tolist()) for layer in model]
    for layer in model:
        optimizer.state[layer.weight_values]["step_size"].fill_(0.5)
    rewirer.rewire()
    for layer, old in zip(model, before, strict=True):
        steps = optimizer.state[layer.weight_values]["step_size"].flatten().tolist()
        positions = layer.topology.linear_positions().tolist()
        grown = {p for p in positions if p not in old}
        expected = [0.01 if p in grown else 0.5 for p in positions]
        assert grown and steps == pytest.approx(expected)


# ---- trying out other classes -------------------------------------------------------------------


class Foreign(torch.optim.Optimizer):
    """Gives its state in every way there is."""

    def __init__(self, params, lr=0.1, start=3.0):
        super().__init__(params, {"lr": lr, "start": start})
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["early"] = torch.full_like(p, start)

    def step(self, closure=None):
        torch.rand(3)
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state.setdefault("set", torch.full_like(p, 2.0)).mul_(5)
                state.update(updated=torch.ones_like(p), count=7)
                state |= {"or": torch.full_like(p.flatten(), -1.0)}
                state["or"] = torch.full_like(p.flatten(), 9.0)
                state["copy"] = p.detach().clone()
                state["empty"] = torch.empty_like(p)
                type(self).unwritten = state["empty"].clone()
                state["uneven"] = torch.arange(1.0, 3.0)
                state["rate"] = torch.full_like(p, group["lr"])
                state["other"] = torch.ones(5)
        raise RuntimeError("in the end")


def test_another_class_is_tried_out():
    weight = nn.Parameter(torch.ones(4, 1))
    optimizer = Foreign([weight], lr=0.25, start=6.0)
    calls = []
    handle = register_optimizer_step_pre_hook(lambda *a: calls.append(a))
    random, state = torch.get_rng_state(), dict(optimizer.state[weight])
    found = fresh_values(optimizer, optimizer.param_groups[0], weight)
    handle.remove()
    expected = {"early": 6.0, "set": 2.0, "updated": 1.0, "or": -1.0, "rate": 0.25}
    assert found == expected and Foreign.unwritten.isnan().all()
    assert torch.equal(torch.get_rng_state(), random) and not calls
    assert optimizer.state[weight].keys() == state.keys()
    optimizer.param_groups[0]["lr"] = 0.5
    found = fresh_values(optimizer, optimizer.param_groups[0], weight)
    assert found == {**expected, "rate": 0.5}


def test_what_was_found_is_kept():
    made = []

    class Counted(RMSpropTF):
        def __init__(self, params, lr=0.1):
            made.append(lr)
            super().__init__(params, lr)

    class Plain(torch.optim.SGD):
        def __init__(self, params, lr=0.1):
            made.append(lr)
            super().__init__(params, lr, momentum=0.9)

    weight = nn.Parameter(torch.ones(4, 1))
    counted, plain = Counted([weight]), Plain([weight])
    made.clear()
    for _ in range(2):
        assert fresh_values(counted, counted.param_groups[0], weight) == {"square_avg": 1.0}
        assert fresh_values(plain, plain.param_groups[0], weight) == {}
    assert len(made) == 2
    counted.param_groups[0]["lr"] = plain.param_groups[0]["lr"] = 0.7
    fresh_values(counted, counted.param_groups[0], weight)
    fresh_values(plain, plain.param_groups[0], weight)  # 0 is so under any rate
    assert len(made) == 3


def test_a_class_that_cannot_be_tried_out_starts_at_0():
    class Wants(torch.optim.SGD):
        def __init__(self, params, what, lr=0.1):
            super().__init__(params, lr, momentum=0.9)

    weight = nn.Parameter(torch.ones(4, 1))
    optimizer = Wants([weight], "more")
    assert fresh_values(optimizer, optimizer.param_groups[0], weight) == {}


# ---- classes that do not name what they take ----------------------------------------------------


class AnyAdagrad(torch.optim.Adagrad):
    def __init__(self, params, **arguments):
        super().__init__(params, **arguments)


class AnyRprop(torch.optim.Rprop):
    def __init__(self, params, *arguments, **more):
        super().__init__(params, *arguments, **more)


class Renamed(torch.optim.Rprop):
    """Tried out, it has another learning rate than its groups."""

    def __init__(self, params, speed=0.3):
        super().__init__(params, lr=speed)


class Attribute(torch.optim.Optimizer):
    """What its state starts at is in no group, and its step wants a closure."""

    def __init__(self, params, start=0.1):
        super().__init__(params, {})
        self.start = start

    @torch.no_grad()
    def step(self, closure):
        closure()
        for p in self.param_groups[0]["params"]:
            if not self.state[p]:
                self.state[p]["sum"] = torch.full_like(p, self.start)


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda p: AnyAdagrad(p, initial_accumulator_value=0.2), {"sum": 0.2}),
        (lambda p: AnyRprop(p, lr=0.5), {"step_size": 0.5}),
        (lambda p: Renamed(p, speed=0.7), {"step_size": 0.7}),
        (lambda p: Attribute(p, 0.6), {"sum": 0.6}),
    ],
)
def test_classes_that_do_not_name_what_they_take(make, expected):
    weight = nn.Parameter(torch.zeros(6, 1))
    optimizer = make([weight])
    found = fresh_values(optimizer, optimizer.param_groups[0], weight)
    assert found == pytest.approx(expected)


class Calling(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def test_no_hook_learns_of_the_step_that_is_tried_out():
    weight = nn.Parameter(torch.zeros(6, 1))
    torch.optim.SGD([weight])  # from now on its class's step calls hooks, too
    optimizer = Calling([weight], lr=0.1, momentum=0.9)
    calls = []
    before = register_optimizer_step_pre_hook(lambda *arguments: calls.append(1))
    after = register_optimizer_step_post_hook(lambda *arguments: calls.append(1))
    try:
        fresh_values(optimizer, optimizer.param_groups[0], weight)
        assert not calls
        optimizer.step()
        assert calls
    finally:
        before.remove()
        after.remove()
