"""State that is loaded, in any order and in any way, belongs to the model of the next step."""

from __future__ import annotations

import copy
import gc
import itertools
import weakref

import pytest
import torch
from helpers.optimizer_cases import (
    AFTER,
    BEFORE,
    MOMENTUM,
    MOVED,
    SAM,
    Container,
    fill,
    idle_step,
    load,
    momentum,
    sgd,
    small_layer,
)
from helpers.rewire_models import make_model, train
from torch import nn

from dsr_kernels.rewiring import DSR, SET, DeepR, Static

PIECES = ("model", "optimizer", "rewirer built", "rewirer loaded")
ORDERS = [
    order
    for order in itertools.permutations(PIECES)
    if order.index("rewirer built") < order.index("rewirer loaded")
]


def make(seed, adam):
    model = make_model(seed)
    if adam:
        return model, torch.optim.AdamW(model.parameters(), lr=0.01)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("order", ORDERS, ids=" ".join)
def test_a_run_resumes_bit_for_bit_in_any_order(order, adam):
    model, optimizer = make(0, adam)
    rewirer = SET(model, optimizer, every=2)
    train(model, optimizer, rewirer, 3)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rewirer.state_dict()))
    train(model, optimizer, rewirer, 3, start=3)
    resumed, its = make(5, adam)
    for piece in order:
        if piece == "model":
            resumed.load_state_dict(saved[0])
        elif piece == "optimizer":
            its.load_state_dict(saved[1])
        elif piece == "rewirer built":
            built = SET(resumed, its, every=2)
        else:
            built.load_state_dict(saved[2])
    train(resumed, its, built, 3, start=3)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def live(steps, wrap=lambda inner: inner):
    layer = small_layer()
    optimizer = sgd(layer)
    optimizer.param_groups[0]["momentum"] = 1.0
    given = wrap(optimizer)
    rewirer = Static(layer, given)
    for _ in range(steps):
        idle_step(optimizer, layer)
    return layer, optimizer, rewirer, given


def another_dict(optimizer, parameter):
    optimizer.state[parameter] = {"momentum_buffer": torch.tensor(MOMENTUM)[:, None]}


def another_tensor(optimizer, parameter):
    optimizer.state[parameter]["momentum_buffer"] = torch.tensor(MOMENTUM)[:, None]


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("how", [another_dict, another_tensor])
@pytest.mark.parametrize("model_first", [True, False])
def test_state_that_is_loaded_in_place_belongs_to_the_model(model_first, how, steps):
    layer, optimizer, _, _ = live(steps)
    if model_first:
        load(layer, AFTER)
    how(optimizer, layer.weight_values)
    if not model_first:
        load(layer, AFTER)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOMENTUM
    load(layer, BEFORE)  # now it follows
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == [1.0, 2.0, 3.0, 0.0, 5.0, 0.0]


def test_a_rewirer_that_is_built_between_two_loads_uses_up_nothing():
    layer, optimizer, _, _ = live(2)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["momentum_buffer"] = torch.tensor(MOMENTUM)[:, None]
    optimizer.load_state_dict(state)
    Static(layer, optimizer)
    load(layer, AFTER)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOMENTUM


class Rebinding(torch.optim.Optimizer):
    """Puts a new momentum in each step."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            state["momentum_buffer"] = state.get("momentum_buffer", torch.zeros_like(p)) + p.grad


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_what_steps_put_there_was_not_loaded(steps):
    layer = small_layer()
    optimizer = Rebinding(layer.parameters())
    Static(layer, optimizer)
    for i in range(steps):
        layer.weight_values.grad = torch.tensor(MOMENTUM)[:, None] * (i == 0)
        optimizer.step()
    load(layer, AFTER)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOVED


def test_state_that_steps_made_late_follows_where_another_optimizer_loads():
    layers = [small_layer(), small_layer()]
    optimizers = [sgd(layer) for layer in layers]
    for optimizer in optimizers:
        optimizer.param_groups[0]["momentum"] = 1.0
    Static(nn.ModuleList(layers), Container(optimizers))
    for _ in range(3):
        for optimizer in optimizers:
            optimizer.step()  # no gradients yet
    for layer, optimizer in zip(layers, optimizers, strict=True):
        layer.weight_values.grad = torch.tensor(MOMENTUM)[:, None]
        optimizer.step()
    for _ in range(2):
        for layer, optimizer in zip(layers, optimizers, strict=True):
            idle_step(optimizer, layer)
    optimizers[1].load_state_dict(optimizers[1].state_dict())
    for layer in layers:
        load(layer, AFTER)
    for layer, optimizer in zip(layers, optimizers, strict=True):
        idle_step(optimizer, layer)
    assert momentum(optimizers[0], layers[0]) == MOVED
    assert momentum(optimizers[1], layers[1]) == MOMENTUM


@pytest.mark.parametrize(
    "shape, fused",
    [*itertools.product([(3,), (2, 3), (12, 1)], [False, True]), ((), True), ((6,), True)],
)
def test_state_of_any_other_shape_is_refused_before_a_step(shape, fused):
    layer = small_layer()
    optimizer = torch.optim.AdamW(layer.parameters(), fused=fused)
    Static(layer, optimizer)
    idle_step(optimizer, layer)
    state = copy.deepcopy(optimizer.state_dict())
    state["state"][0]["exp_avg"] = torch.zeros(shape)
    optimizer.load_state_dict(state)
    with pytest.raises(ValueError, match=r"state 'exp_avg' of layer '' has shape .*make a step"):
        idle_step(optimizer, layer)


def test_a_layer_that_is_added_later_is_known_from_the_next_step_on():
    model = nn.ModuleList([small_layer(), small_layer()])
    model[1].requires_grad_(False)
    optimizer = sgd(model[0])
    optimizer.param_groups[0]["momentum"] = 1.0
    Static(model, optimizer)
    model[1].requires_grad_(True)
    optimizer.add_param_group({"params": list(model[1].parameters()), "momentum": 1.0})
    for i in range(3):
        model[1].weight_values.grad = torch.tensor(MOMENTUM)[:, None] * (i == 0)
        optimizer.step()
    load(model[1], AFTER)
    idle_step(optimizer, model[1])
    assert momentum(optimizer, model[1]) == MOVED


@pytest.mark.parametrize("wrap", [lambda inner: inner, SAM])
def test_a_model_and_its_optimizer_die_with_their_last_name(wrap):
    layer, optimizer, rewirer, given = live(3, wrap)
    fill(optimizer, layer)
    watched = [weakref.ref(one) for one in (layer, optimizer, given, rewirer)]
    gc.collect()
    gc.disable()
    try:
        del rewirer
        load(layer, AFTER)
        idle_step(optimizer, layer)
        del layer, optimizer, given
        assert [one() for one in watched] == [None] * 4
    finally:
        gc.enable()


def test_an_inner_optimizer_that_outlives_its_wrapper_is_still_looked_at():
    layer, optimizer, rewirer, given = live(0, SAM)
    fill(optimizer, layer)
    idle_step(optimizer, layer)
    del rewirer, given
    gc.collect()
    load(layer, AFTER)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOVED


def test_a_step_looks_at_no_layer_where_no_pattern_has_changed(monkeypatch):
    model = nn.ModuleList([small_layer() for _ in range(5)])
    optimizer = sgd(model)
    rewirer = Static(model, optimizer)
    for _ in range(3):
        optimizer.step()
    (patterns,) = rewirer._optimizers._patterns
    looks = []
    kind = type(next(iter(patterns._known.values())))
    monkeypatch.setattr(kind, "changed", property(lambda known: looks.append(known)))
    optimizer.step()
    assert not looks
    load(model[3], AFTER)
    optimizer.step()
    assert len(looks) == 5


def test_signs_of_zeros_outlive_a_load_of_the_same_pattern():
    def run(swap):
        model, optimizer = make(0, adam=False)
        rewirer = DeepR(model, optimizer, length=100, temperature=1e-3, l1=1e-2, report_every=1)
        for i in range(12):
            train(model, optimizer, rewirer, 1, start=i)
            if swap:
                own = copy.deepcopy(model.state_dict())
                model.load_state_dict({k: -v if "values" in k else v for k, v in own.items()})
                model.load_state_dict(own)
        return model

    for one, other in zip(run(False).parameters(), run(True).parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_copy_of_a_rewirer_knows_what_was_loaded_in_place():
    layer, optimizer, rewirer, _ = live(3)
    fill(optimizer, layer)
    idle_step(optimizer, layer)
    layer, optimizer, rewirer = copy.deepcopy((layer, optimizer, rewirer))
    load(layer, AFTER)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOVED
    another_tensor(optimizer, layer.weight_values)
    load(layer, BEFORE)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOMENTUM


def test_dsr_resumes_where_an_optimizer_fills_its_state_itself():
    class Filling(torch.optim.SGD):
        def load_state_dict(self, state):
            own = [p for group in self.param_groups for p in group["params"]]
            for i, held in state["state"].items():
                self.state[own[i]] = {key: value.clone() for key, value in held.items()}

    def make_one(seed):
        model = make_model(seed)
        return model, Filling(model.parameters(), lr=0.1, momentum=0.9)

    model, optimizer = make_one(0)
    rewirer = DSR(model, optimizer, every=2)
    train(model, optimizer, rewirer, 5)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), rewirer.state_dict()))
    resumed, its = make_one(7)
    built = DSR(resumed, its, every=2)
    train(resumed, its, built, 1)
    for piece, state in zip((resumed, its, built), saved, strict=True):
        piece.load_state_dict(state)
    train(model, optimizer, rewirer, 4, start=5)
    train(resumed, its, built, 4, start=5)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)
