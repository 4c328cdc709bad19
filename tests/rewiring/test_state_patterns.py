"""A model that takes on another pattern beside a live optimizer: the state follows."""

from __future__ import annotations

import copy
import gc
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
    Planned,
    ScheduleFree,
    another,
    fill,
    idle_step,
    load,
    momentum,
    parts,
    place,
    replace,
    sgd,
    small_layer,
)
from helpers.rewire_models import entries, make_model, state_arrays, train
from torch import nn

from dsr_kernels.rewiring import DSR, Static

ONES = torch.ones(6)


# ---- another pattern ----------------------------------------------------------------------------


@pytest.mark.parametrize("change", [load, replace])
@pytest.mark.parametrize("wrap", [lambda inner: inner, SAM, ScheduleFree, lambda i: Container([i])])
def test_state_follows_before_the_next_step(change, wrap):
    layer, optimizer, _ = parts(wrap=wrap)
    change(layer, AFTER)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOVED
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOVED


@pytest.mark.parametrize("change", [load, replace])
def test_state_follows_to_another_number_of_non_zeros(change):
    layer, optimizer, _ = parts()
    change(layer, [1, 4, 9])
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == [2.0, 0.0, 4.0]
    change(layer, [1, 2, 4, 9, 10])
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == [2.0, 0.0, 0.0, 4.0, 0.0]


def test_state_follows_before_a_rewire():
    layer, optimizer, rewirer = parts(Planned)
    load(layer, AFTER)
    layer.weight_values.data = torch.tensor([[1.0], [2.0], [3.0], [4.0], [0.1], [0.2]])
    rewirer.rewire()  # prunes 7 and 9; grows the third and fifth of 3, 4, 6, 8, 10, 11
    assert layer.topology.linear_positions().tolist() == [0, 1, 2, 5, 6, 10]
    assert momentum(optimizer, layer) == [1.0, 2.0, 3.0, 0.0, 0.0, 0.0]


def test_a_pattern_that_returns_keeps_its_state():
    """As where averages are swapped in to validate."""
    layer, optimizer, _ = parts()
    idle_step(optimizer, layer)
    own = copy.deepcopy(layer.state_dict())
    load(layer, AFTER)
    layer.load_state_dict(own)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOMENTUM


@pytest.mark.parametrize("first", ["model", "optimizer"])
def test_state_that_was_loaded_belongs_to_the_model_that_was(first):
    layer, optimizer, _ = parts()
    idle_step(optimizer, layer)
    state = copy.deepcopy(optimizer.state_dict())
    for which in (first, *({"model", "optimizer"} - {first})):
        if which == "model":
            load(layer, AFTER)
        else:
            optimizer.load_state_dict(state)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOMENTUM
    load(layer, BEFORE)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == [1.0, 2.0, 3.0, 0.0, 5.0, 0.0]


def test_state_that_a_wrapper_did_not_load_follows():
    """SAM's state_dict has its own state, not that of the optimizer within."""
    layer = small_layer()
    inner = sgd(layer)
    inner.param_groups[0]["momentum"] = 1.0
    sam = SAM(inner)
    Static(layer, sam)
    fill(inner, layer)
    sam.state[layer.weight_values]["old_p"] = torch.arange(6.0)[:, None]
    for _ in range(2):
        idle_step(sam, layer)
    load(layer, AFTER)
    sam.load_state_dict(copy.deepcopy(sam.state_dict()))
    idle_step(sam, layer)
    assert momentum(inner, layer) == MOVED
    assert sam.state[layer.weight_values]["old_p"].flatten().tolist() == list(range(6))


def test_state_that_is_loaded_without_torchs_method_belongs_to_the_model():
    """As bitsandbytes does: no hook of torch's is called."""
    layer, optimizer, _ = parts()
    for _ in range(2):
        idle_step(optimizer, layer)
    state = copy.deepcopy(optimizer.state_dict())["state"][0]
    load(layer, AFTER)
    fresh = type(optimizer.state)(dict, {layer.weight_values: state})
    optimizer.__setstate__({"state": fresh, "param_groups": optimizer.param_groups})
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOMENTUM


def test_state_of_sharded_optimizers_is_loaded_in_place():
    """ZeroRedundancyOptimizer puts it under the inner optimizer's parameters one by one."""
    layer = small_layer()
    inner = sgd(layer)
    inner.param_groups[0]["momentum"] = 1.0
    outer = SAM(inner)
    fill(inner, layer)
    Static(layer, outer)
    for _ in range(2):
        idle_step(outer, layer)
    load(layer, AFTER)
    inner.state[layer.weight_values] = {"momentum_buffer": torch.tensor(MOMENTUM)[:, None]}
    outer.load_state_dict(outer.state_dict())
    idle_step(outer, layer)
    assert momentum(inner, layer) == MOMENTUM


def test_a_parameter_that_is_replaced_costs_no_looks():
    layer, _, rewirer = parts()
    layer.load_state_dict(another(AFTER), assign=True)
    (patterns,) = rewirer._optimizers._patterns
    patterns.settle()
    assert not patterns.unsettled()


def test_state_that_the_caller_has_moved_is_left_alone():
    layer, optimizer, _ = parts()
    replace(layer, [1, 4, 9])
    state = optimizer.state[layer.weight_values]
    state["momentum_buffer"] = torch.tensor([[7.0], [8.0], [9.0]])
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == [7.0, 8.0, 9.0]


def test_best_weights_restored_in_training():
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    rewirer = DSR(model, optimizer, prune_fraction=0.3, threshold="exact", every=2)
    train(model, optimizer, rewirer, 3)
    best = copy.deepcopy(model.state_dict())
    train(model, optimizer, rewirer, 4, start=3)
    layers = model[0], model[3]
    before = [entries(layer, *state_arrays(optimizer, layer)[1:]) for layer in layers]
    model.load_state_dict(best)
    sizes = [layer.nnz for layer in layers]
    rewirer._optimizers.settle()  # as before the next step
    for layer, old, nnz in zip(layers, before, sizes, strict=True):
        new = entries(layer, *state_arrays(optimizer, layer)[1:])
        assert len(new) == nnz and set(new) != set(old)
        assert all(new[p] == old.get(p, (0.0, 0.0)) for p in new)
    train(model, optimizer, rewirer, 3, start=3)


# ---- rewirers and hooks -------------------------------------------------------------------------


def test_two_rewirers_move_state_once():
    layer, optimizer, first = parts(Planned)
    second = Planned(layer, SAM(optimizer))
    first.rewire()
    assert momentum(optimizer, layer) == MOVED
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOVED
    place(layer, BEFORE, torch.tensor([2.0, 3.0, 4.0, 0.1, 5.0, 0.2]))
    second.rewire()
    assert momentum(optimizer, layer) == [1.0, 2.0, 3.0, 0.0, 0.0, 4.0]
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == [1.0, 2.0, 3.0, 0.0, 0.0, 4.0]


def test_a_rewirer_over_both_takes_over_what_two_knew():
    layers = [small_layer(), small_layer()]
    optimizers = [sgd(layer) for layer in layers]
    for layer, optimizer in zip(layers, optimizers, strict=True):
        optimizer.param_groups[0]["momentum"] = 1.0
        fill(optimizer, layer)
        Static(layer, optimizer)
        replace(layer, AFTER)
    both = Container(optimizers)
    Static(nn.ModuleList(layers), both)
    for layer, optimizer in zip(layers, optimizers, strict=True):
        idle_step(optimizer, layer)
        assert momentum(optimizer, layer) == MOVED
        assert len(optimizer._optimizer_step_pre_hooks) == 1


def test_a_new_rewirer_knows_what_the_last_one_knew():
    layer, optimizer, rewirer = parts()
    replace(layer, AFTER)
    del rewirer
    Static(layer, optimizer)
    assert momentum(optimizer, layer) == MOVED


def test_hooks_keep_no_rewirer_alive():
    layer, optimizer, rewirer = parts()
    dead = weakref.ref(rewirer)
    del rewirer
    gc.collect()
    assert dead() is None
    replace(layer, AFTER)
    idle_step(optimizer, layer)
    assert momentum(optimizer, layer) == MOVED


def test_steps_look_only_where_something_has_changed(monkeypatch):
    layer, optimizer, rewirer = parts()
    idle_step(optimizer, layer)
    idle_step(optimizer, layer)
    (patterns,) = rewirer._optimizers._patterns
    looks = []
    monkeypatch.setattr(type(patterns), "settle", lambda self: looks.append(1))
    for _ in range(3):
        idle_step(optimizer, layer)
    assert not looks
    optimizer.load_state_dict(optimizer.state_dict())
    idle_step(optimizer, layer)
    assert looks
