"""What follows a rewire: optimizer state, averages, checkpoints; a failed one changes nothing."""

import copy
import math

import pytest
import torch
from helpers.rewire_models import (
    OPTIMIZERS,
    STATE_KEYS,
    assert_same,
    entries,
    make_model,
    snapshot,
    state_arrays,
    train,
    trained,
)
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dsr_kernels.nn import named_sparse_modules
from dsr_kernels.rewiring import DSR, Static


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sparselab_set_never_touches_the_optimizer(name):
    """Its survivors then take over other weights' momentum, and grown weights inherit some."""
    model = make_model()
    optimizer = OPTIMIZERS[name](model.parameters())
    rewirer = DSR(model, optimizer, prune_fraction=0.3, threshold="exact", every=10**6)
    train(model, optimizer, rewirer, 5)
    modules = [m for _, m in named_sparse_modules(model)]
    steps = [copy.deepcopy(optimizer.state[m.weight_values].get("step")) for m in modules]
    before = [entries(m, *state_arrays(optimizer, m)) for m in modules]
    parameters = list(model.parameters())
    rewirer.rewire()
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    for module, old, step in zip(modules, before, steps, strict=True):
        arrays = state_arrays(optimizer, module)
        assert len(arrays) == 1 + len(STATE_KEYS[name])
        new = entries(module, *arrays)
        moved = set(old) - set(new)
        assert moved
        zeros = (0.0,) * len(arrays)
        assert all(new[p] == old.get(p, zeros) for p in new)
        assert optimizer.state[module.weight_values].get("step") == step
        assert module.weight_values.grad is None
    train(model, optimizer, rewirer, 5)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_rewiring_before_the_first_optimizer_step():
    model = make_model()
    optimizer = OPTIMIZERS["adam"](model.parameters())
    DSR(model, optimizer).rewire()
    assert len(optimizer.state) == 0  # looking must not create anything


@pytest.mark.parametrize("name", ["nesterov", "adamw"])
@pytest.mark.parametrize("threshold", ["adaptive", "exact"])
def test_a_resumed_run_equals_the_uninterrupted_one(name, threshold):
    def start(seed):
        model = make_model(seed)
        optimizer = OPTIMIZERS[name](model.parameters())
        rewirer = DSR(model, optimizer, prune_count=40, threshold=threshold, every=2, seed=seed)
        return model, optimizer, rewirer

    uninterrupted = start(0)
    reports = train(*uninterrupted, 12)

    first = start(0)
    train(*first, 5)
    saved = copy.deepcopy([part.state_dict() for part in first])
    second = start(1)  # another pattern, another seed: all of it must come from the state
    for part, state in zip(second, saved, strict=True):
        part.load_state_dict(state)
    resumed = train(*second, 7, start=5)

    assert [r and r.layers for r in resumed] == [r and r.layers for r in reports[5:]]
    a, b = uninterrupted[0].state_dict(), second[0].state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    assert uninterrupted[2].state_dict() == second[2].state_dict()


def test_state_dict_survives_weights_only_loading(tmp_path):
    model = make_model()
    rewirer = DSR(model, OPTIMIZERS["sgd"](model.parameters()))
    torch.save(rewirer.state_dict(), tmp_path / "rewirer.pt")
    loaded = torch.load(tmp_path / "rewirer.pt", weights_only=True)
    assert loaded == rewirer.state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, "expected version 3, got 99"),
        ({"method": "SET"}, "expected method 'DSR', got 'SET'"),
        ({"mode": "exact"}, "expected a state of threshold='adaptive', got 'exact'"),
        ({"iteration": -1}, "iteration: expected an integer of at least 0"),
        ({"threshold": math.nan}, "threshold: expected a finite number > 0"),
        ({"prune_count": 0}, "prune_count: expected an integer of at least 1"),
        ({"extra": 1}, "expected keys"),
    ],
)
def test_foreign_states_are_refused_and_change_nothing(change, message):
    model = make_model()
    rewirer = DSR(model, OPTIMIZERS["sgd"](model.parameters()), every=1)
    rewirer.step()
    state = rewirer.state_dict()
    with pytest.raises(ValueError, match=message):
        rewirer.load_state_dict({**state, "iteration": 7, **change})
    assert rewirer.state_dict() == state
    with pytest.raises(ValueError, match="expected method 'Static', got 'DSR'"):
        Static(model).load_state_dict(state)
    older = {key: value for key, value in state.items() if key != "carried_over"} | {"version": 1}
    with pytest.raises(ValueError, match="expected version 3, got 1"):
        rewirer.load_state_dict(older)


# ---- averages -----------------------------------------------------------------------------------


def test_an_average_follows():
    model = make_model()
    optimizer = OPTIMIZERS["nesterov"](model.parameters())
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    rewirer = DSR(model, optimizer, prune_fraction=0.3, threshold="exact", every=10**6)
    rewirer.follow(ema)
    train(model, optimizer, rewirer, 4, ema=ema)
    pairs = [(model[i], ema.module[i]) for i in (0, 3)]
    before = [entries(copied, copied.weight_values.detach()) for _, copied in pairs]
    rewirer.rewire()
    for (module, copied), old in zip(pairs, before, strict=True):
        assert torch.equal(module.crow_indices, copied.crow_indices)
        assert torch.equal(module.col_indices, copied.col_indices)
        assert module.col_indices.data_ptr() != copied.col_indices.data_ptr()
        new = entries(copied, copied.weight_values.detach())
        assert all(new[p] == old.get(p, (0.0,)) for p in new) and set(old) - set(new)
    train(model, optimizer, rewirer, 4, ema=ema)
    ema(torch.randn(2, 3, 6, 6))


def test_follow_refuses_what_is_no_copy():
    model = make_model()
    rewirer = DSR(model, OPTIMIZERS["sgd"](model.parameters()))
    with pytest.raises(ValueError, match="Linear has none"):
        rewirer.follow(nn.Linear(3, 3))
    with pytest.raises(ValueError, match="no sparse module '3'"):
        rewirer.follow(nn.Sequential(copy.deepcopy(model[0])))
    with pytest.raises(ValueError, match="expected the same pattern"):
        rewirer.follow(make_model(seed=1))
    with pytest.raises(ValueError, match="got the model itself"):
        rewirer.follow(model)
    rewirer.rewire()


# ---- all or nothing -----------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_weight_stops_the_rewire_before_anything_changes(bad):
    parts = trained()
    model, _, rewirer = parts
    model[3].weight_values.data[17] = bad
    before = snapshot(*parts)
    for rewire in (rewirer.rewire, rewirer.step):
        with pytest.raises(ValueError, match=r"layer '3': the weight at row \d+, column \d+ is"):
            rewire()
        assert_same(before, snapshot(*parts))


def test_a_failure_half_way_through_is_taken_back():
    parts = trained()
    model, _, rewirer = parts
    before = snapshot(*parts)
    replace = model[3].replace_topology
    calls = []

    def fail_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of luck")
        return replace(*args, **kwargs)

    model[3].replace_topology = fail_once
    with pytest.raises(RuntimeError, match="out of luck"):
        rewirer.step()
    assert_same(before, snapshot(*parts))
    assert rewirer.step() is not None


def test_optimizer_state_of_another_shape_is_refused():
    parts = trained()
    model, optimizer, rewirer = parts
    optimizer.state[model[3].weight_values]["exp_avg"] = torch.zeros(3)
    before = snapshot(*parts)
    with pytest.raises(ValueError, match=r"state 'exp_avg' of layer '3' has shape \(3,\)"):
        rewirer.rewire()
    assert_same(before, snapshot(*parts))


def test_layers_on_other_devices_are_refused():
    model = make_model()
    rewirer = DSR(model, OPTIMIZERS["sgd"](model.parameters()))
    model[3].col_indices = model[3].col_indices.to("meta")
    with pytest.raises(ValueError, match="'3': expected values and indices on cpu, got one on met"):
        rewirer.rewire()
    meta = make_model().to("meta")
    with pytest.raises(ValueError, match="'0 of Sequential': expected them on one device, got"):
        rewirer.follow(meta)
    with pytest.raises(ValueError, match="'0': rewiring works on CPU and CUDA tensors, got meta"):
        DSR(meta, OPTIMIZERS["sgd"](meta.parameters())).rewire()
