"""Optimizers around optimizers, several of them, and state that is kept elsewhere."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.optimizer_cases import (
    AFTER,
    BEFORE,
    MOMENTUM,
    MOVED,
    SAM,
    WRAPPERS,
    Container,
    Lookahead,
    Planned,
    ScheduleFree,
    fill,
    momentum,
    place,
    sgd,
    small_layer,
)
from helpers.rewire_models import make_model, train
from torch import nn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR, GMP, SET, SNFS, DeepR, RigL, Static


@pytest.mark.parametrize("name", WRAPPERS)
def test_the_momentum_of_an_inner_optimizer_moves(name):
    layer = small_layer()
    inner = sgd(layer)
    fill(inner, layer)
    Planned(layer, WRAPPERS[name](inner)).rewire()
    assert layer.topology.linear_positions().tolist() == AFTER
    assert momentum(inner, layer) == MOVED


def test_the_state_of_a_wrapper_moves_as_well():
    layer = small_layer()
    inner = sgd(layer)
    wrapper = SAM(inner)
    fill(inner, layer)
    wrapper.state[layer.weight_values]["old_p"] = torch.arange(11.0, 17.0)[:, None]
    shared = inner.state[layer.weight_values]["momentum_buffer"]
    wrapper.state[layer.weight_values]["alias"] = shared
    Planned(layer, wrapper).rewire()
    state = wrapper.state[layer.weight_values]
    assert state["old_p"].flatten().tolist() == [11.0, 12.0, 13.0, 0.0, 0.0, 15.0]
    assert momentum(inner, layer) == MOVED
    assert state["alias"] is inner.state[layer.weight_values]["momentum_buffer"]


@pytest.mark.parametrize("inside", [False, True])
def test_a_dict_by_parameter_is_state_whatever_its_name(inside):
    layer = small_layer()
    optimizer = sgd(layer)
    slow = torch.tensor(MOMENTUM)[:, None]
    optimizer.slow_weights = {layer.weight_values: {"slow": slow} if inside else slow}
    Planned(layer, optimizer).rewire()
    held = optimizer.slow_weights[layer.weight_values]
    assert (held["slow"] if inside else held).flatten().tolist() == MOVED


HIDDEN = {
    "a list": lambda o, t: setattr(o, "slow", [t]),
    "a list of lists": lambda o, t: setattr(o, "slow", [[t]]),
    "an attribute": lambda o, t: setattr(o, "slow", t),
    "a dict by name": lambda o, t: setattr(o, "slow", {"weight": t}),
    "a dict in a list": lambda o, t: setattr(o, "slow", [{"weight": (t,)}]),
    "state": lambda o, t: o.state.update({"slow": {"weight": t}}),
    "param_groups": lambda o, t: o.param_groups[0].update(slow=[t]),
}


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("name", HIDDEN)
def test_tensors_of_the_values_shape_elsewhere_are_refused_by_name(name, wrapped):
    layer = small_layer()
    optimizer = sgd(layer)
    given = Container([optimizer]) if wrapped else optimizer
    attribute = name if name in ("state", "param_groups") else "slow"
    message = rf"SGD keeps a tensor of shape \(6, 1\), .* layer '', in its attribute '{attribute}'"
    rewirer = Planned(layer, given)
    HIDDEN[name](optimizer, torch.zeros(6, 1))
    with pytest.raises(ValueError, match=message):
        Planned(layer, given)
    with pytest.raises(ValueError, match=message):
        rewirer.rewire()
    assert layer.topology.linear_positions().tolist() == BEFORE


def test_lists_of_parameters_and_their_gradients_are_no_state():
    model = nn.Sequential(small_layer(), nn.Flatten(), SparseLinear(2, 6, nnz=6))
    optimizer = sgd(model)
    optimizer.all_params = list(model.parameters())
    model(torch.ones(1, 6)).sum().backward()
    optimizer.grads = [p.grad for p in model.parameters()]
    optimizer.means = [torch.zeros(5, 1)]
    Planned(model[0], optimizer).rewire()


def test_lbfgs_is_refused_when_the_rewirer_is_built():
    layer = small_layer()
    inner = torch.optim.LBFGS(layer.parameters())
    for given in (inner, Container([inner]), [inner]):
        with pytest.raises(ValueError, match=r"LBFGS keeps 'd', 'old_dirs'.* layer ''"):
            DSR(layer, given)


def test_buckets_of_a_fixed_size_are_refused():
    layer = small_layer()
    optimizer = sgd(layer)
    optimizer.parameters_as_bucket_view = True
    with pytest.raises(ValueError, match="SGD with parameters_as_bucket_view=True keeps the val"):
        DSR(layer, optimizer)


@pytest.mark.parametrize("given", [3, [], ["sgd"], [None], Container([]), Container([nn.ReLU()])])
def test_what_holds_no_optimizer_is_refused(given):
    with pytest.raises((TypeError, ValueError), match=r"optimizer: expected a"):
        DSR(small_layer(), given)


# ---- several ------------------------------------------------------------------------------------


def two(model):
    """SGD for the convolution, Adam for the rest."""
    first = [model[0].weight_values]
    rest = [p for p in model.parameters() if p is not first[0]]
    return torch.optim.SGD(first, lr=0.05, momentum=0.9), torch.optim.Adam(rest, lr=0.01)


OPTIONS = {
    DSR: {"prune_fraction": 0.3},
    SET: {},
    RigL: {"length": 10},
    SNFS: {"length": 10},
    DeepR: {"length": 10, "eta": 0.5},
    GMP: {"final_sparsity": 0.9, "end": 4},
    Static: {},
}


@pytest.mark.parametrize("method", OPTIONS)
def test_every_method_takes_a_list(method):
    model = make_model()
    optimizers = two(model)
    rewirer = method(model, list(optimizers), **OPTIONS[method])

    class Both:
        def step(self):
            for optimizer in optimizers:
                optimizer.step()

        def zero_grad(self):
            for optimizer in optimizers:
                optimizer.zero_grad()

    train(model, Both(), rewirer, 3)
    for _ in range(2):
        if method in (RigL, SNFS):
            rewirer._watch.start(rewirer._layers)
        model(torch.randn(2, 3, 6, 6)).square().sum().backward()
        rewirer.rewire()
    for layer, optimizer, key in (
        (model[0], optimizers[0], "momentum_buffer"),
        (model[3], optimizers[1], "exp_avg"),
    ):
        assert optimizer.state[layer.weight_values][key].shape == layer.weight_values.shape
    assert method is Static or rewirer.rewires >= 2
    train(model, Both(), rewirer, 2)


def test_each_layer_is_held_by_exactly_one():
    model = make_model()
    first, second = two(model)
    with pytest.raises(ValueError, match="expected it to hold the values of layer '3'"):
        DSR(model, [first])
    everything = torch.optim.AdamW(model.parameters())
    message = "one to hold the values of layer '0', but SGD and AdamW do; give the parameter to one"
    with pytest.raises(ValueError, match=message):
        DSR(model, [first, everything])
    model[0].weight_values.requires_grad_(False)
    with pytest.raises(ValueError, match="layer '0', but SGD and AdamW do"):
        DSR(model, [first, everything])
    DSR(model, (first, second))


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9")
@pytest.mark.parametrize("contained", [False, True])
def test_muon_beside_adamw(contained):
    model = make_model()
    sparse = [model[0].weight_values, model[3].weight_values]
    rest = [p for p in model.parameters() if all(p is not w for w in (*sparse, model[4].weight))]
    muon, adamw = torch.optim.Muon([model[4].weight]), torch.optim.AdamW([*sparse, *rest])
    DSR(model, Container([muon, adamw]) if contained else [muon, adamw]).rewire()
    with pytest.raises(ValueError, match="Muon updates the weight_values of layer '0' as a matrix"):
        DSR(model, Lookahead(torch.optim.Muon([*sparse, model[4].weight])))


def test_the_inner_optimizer_decides_whether_it_is_a_matrix():
    kind = type("MuonLookahead", (ScheduleFree,), {})
    model = make_model()
    DSR(model, kind(torch.optim.AdamW(model.parameters()))).rewire()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_moves_its_own_state(copied):
    layer = small_layer()
    optimizer = sgd(layer)
    fill(optimizer, layer)
    rewirer = Static(layer, optimizer)
    layer2, optimizer2, rewirer2 = copied((layer, optimizer, rewirer))
    place(layer2, AFTER, torch.ones(6))
    layer2(torch.ones(1, 6)).sum().backward()
    optimizer2.param_groups[0]["momentum"] = 1.0
    layer2.weight_values.grad.zero_()
    optimizer2.step()
    assert momentum(optimizer2, layer2) == MOVED
    assert momentum(optimizer, layer) == MOMENTUM
    assert rewirer2.nnz == 6


# ---- what is not plain to see -------------------------------------------------------------------


class Aside:
    """A plain object, or one of its methods, is all that leads to the inner optimizer."""

    def __init__(self, inner, how):
        self.param_groups = inner.param_groups
        if how == "object":
            self.held = SimpleNamespace(base=inner)
        else:
            self.held = inner.step if how == "method" else partial(inner.step)

    def step(self):
        raise NotImplementedError


@pytest.mark.parametrize("how", ["object", "method", "partial"])
def test_an_inner_optimizer_behind_an_object_or_a_method_is_found(how):
    layer = small_layer()
    inner = sgd(layer)
    fill(inner, layer)
    Planned(layer, Aside(inner, how)).rewire()
    assert momentum(inner, layer) == MOVED


class Flat(torch.optim.Optimizer):
    """Keeps something of all parameters in one tensor, as copies of LBFGS do."""

    def __init__(self, parameters, where):
        super().__init__(parameters, {})
        flat = torch.cat([p.detach().flatten() for p in self.param_groups[0]["params"]])
        if where == "attribute":
            self.buffer = flat
        elif where == "global_state":
            self.state["global_state"]["d"] = flat
        elif where == "old_dirs":
            self.state[self.param_groups[0]["params"][0]]["old_dirs"] = [flat]
        else:
            self.by_id = {id(p): p.detach().flatten() for p in self.param_groups[0]["params"]}


@pytest.mark.parametrize(
    "where, message",
    [
        ("attribute", r"one tensor of all parameters, in its attribute 'buffer'.* layer '1'"),
        ("global_state", r"one tensor of all parameters, in its attribute 'state'.* layer '1'"),
        ("old_dirs", r"one tensor of all parameters, in state 'old_dirs'.* layer '1'"),
        ("by id", r"shape \(6,\), .* of the values of layer '1', in its attribute 'by_id'"),
    ],
)
def test_flat_state_of_all_parameters_is_refused(where, message):
    model = nn.Sequential(nn.Linear(5, 6), small_layer())
    with pytest.raises(ValueError, match=message):
        Static(model, Flat(model.parameters(), where))


def test_a_tensor_of_another_length_is_nobodys():
    model = nn.Sequential(nn.Linear(5, 6), small_layer())
    optimizer = sgd(model)
    optimizer.losses = torch.zeros(41)
    Static(model, optimizer)
