"""No optimizer steps a sparse layer with state that belongs to other values."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from helpers.optimizer_cases import AFTER, BEFORE, SAM, place
from helpers.step_cases import adamw, at, live, refused, sgd, step, two
from torch import nn
from torch.nn.utils import prune

from dsr_kernels.nn import SparseLinear, step_check
from dsr_kernels.nn.sharing import living
from dsr_kernels.rewiring import DSR, SET

# ---- sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [True, False])
def test_a_checkpoint_of_parameters_in_another_order_is_refused(fused):
    model, other = two("ab"), two("ba")
    first, second = (torch.optim.AdamW(m.parameters(), fused=fused) for m in (model, other))
    step(model, first)
    other.load_state_dict(other.state_dict())  # so that the layers know their names
    second.load_state_dict(first.state_dict())
    refused(other, second, r"'exp_avg' of layer 'b' has shape \(60, 1\), but .* \(90, 1\).*AdamW")
    second.load_state_dict({**first.state_dict(), "state": {}})
    step(other, second)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_older_state_of_another_size_is_refused_after_any_number_of_steps(steps):
    layer, optimizer = live(adamw, steps)
    older = copy.deepcopy(optimizer.state_dict())
    place(layer, [1, 2, 3], torch.ones(3))
    optimizer.state.clear()
    for _ in range(steps):
        step(layer, optimizer)
    optimizer.load_state_dict(older)
    refused(layer, optimizer, r"has shape \(6, 1\), but its weight_values have \(3, 1\)")


@pytest.mark.parametrize("shape", [(9, 1), (2, 1), (1, 1), (1,), (6,), (3, 2)])
def test_a_fused_step_takes_no_other_shape_than_the_parameter(shape):
    layer, optimizer = live(lambda p: sgd(p, fused=True))
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["momentum_buffer"] = torch.zeros(shape)
    optimizer.load_state_dict(saved)
    refused(layer, optimizer, r"'momentum_buffer' of SparseLinear of weight shape \(2, 6\) has")


def test_a_fused_step_takes_a_step_count_of_one_dimension():
    layer, optimizer = live(adamw)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["step"] = torch.ones(1)  # as torch once saved it
    optimizer.load_state_dict(saved)
    step(layer, optimizer)


def test_values_that_torch_prunes_are_looked_at():
    layer = at(BEFORE)
    prune.identity(layer, "weight_values")
    optimizer = adamw(layer.parameters())
    optimizer.state[layer.weight_values_orig]["exp_avg"] = torch.zeros(7, 1)
    refused(layer, optimizer, r"'exp_avg' of SparseLinear .* has shape \(7, 1\)")


def test_an_unpickled_layer_is_looked_at():
    layer, optimizer = live(adamw)
    file = io.BytesIO()
    torch.save((layer, optimizer), file)
    file.seek(0)
    living.clear()  # as in a process that has built no layer
    layer, optimizer = torch.load(file, weights_only=False)
    step(layer, optimizer)
    optimizer.state[layer.weight_values]["exp_avg"] = torch.zeros(7, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    refused(layer, optimizer, r"has shape \(7, 1\)")


class Keeps(torch.optim.Optimizer):
    """Of another package: keeps what it likes."""

    def __init__(self, parameters, *shapes):
        super().__init__(parameters, {})
        self.shapes = shapes

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter] = {str(s): torch.zeros(s) for s in self.shapes}


def test_what_other_packages_keep_is_not_refused():
    layer = at(BEFORE)
    shapes = [(4, 1), (4,), (1,), (1, 1), (6, 6), (6, 3), (6,), (6, 1), (2, 6, 1), (0,)]
    optimizer = Keeps(layer.parameters(), *shapes)
    for _ in range(3):
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()


def test_what_other_packages_keep_is_refused_where_it_is_of_another_layer_or_size():
    model = two("ab")
    optimizer = Keeps(model.parameters(), (60, 1))
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"has shape \(60, 1\), but its .* \(90, 1\)"):
        optimizer.step()
    layer = at(BEFORE)
    optimizer = Keeps(layer.parameters(), (6,))
    optimizer.step()
    optimizer.step()
    place(layer, [1, 2, 3], torch.ones(3))
    with pytest.raises(RuntimeError, match=r"has shape \(6,\), but its .* \(3, 1\)"):
        optimizer.step()


def test_a_compiled_step_is_looked_at():
    layer, optimizer = live(adamw)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    compiled()
    optimizer.state[layer.weight_values]["exp_avg"] = torch.zeros(7, 1)
    optimizer.load_state_dict(optimizer.state_dict())
    with pytest.raises(RuntimeError, match=r"has shape \(7, 1\), but"):
        compiled()


# ---- never refused ------------------------------------------------------------------------------

ORDINARY = {
    "SGD": sgd,
    "SGD fused": lambda p: sgd(p, fused=True),
    "Adam": torch.optim.Adam,
    "AdamW fused": adamw,
    "AdamW foreach": lambda p: torch.optim.AdamW(p, foreach=True, amsgrad=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, fused=True),
    "Adafactor": torch.optim.Adafactor,
    "Rprop": torch.optim.Rprop,
    "ASGD": torch.optim.ASGD,
    "NAdam": torch.optim.NAdam,
    "SAM": lambda p: SAM(adamw(p)),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=2),
}


@pytest.mark.parametrize("nnz", [1, 5])
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_training_and_resuming_are_not_refused(name, nnz):
    def build():
        model = nn.Sequential(
            SparseLinear(6, 3, nnz=nnz), nn.Linear(3, 2), SparseLinear(2, 2, nnz=3)
        )
        return model, ORDINARY[name](model.parameters())

    model, optimizer = build()
    for _ in range(3):
        step(model, optimizer)
    for _ in range(2):
        resumed, its = build()
        resumed.load_state_dict(model.state_dict())
        its.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for _ in range(3):
            step(resumed, its)
        model.load_state_dict(resumed.state_dict())
        optimizer.load_state_dict(its.state_dict())
        step(model, optimizer)


@pytest.mark.parametrize(("method", "prune"), [(SET, "fraction"), (DSR, "prune_fraction")])
def test_rewirers_are_not_refused(method, prune):
    model = two("ab")
    optimizer = adamw(model.parameters())
    rewirer = method(model, optimizer, **{prune: 0.3}, every=2)
    for _ in range(6):
        step(model, optimizer)
        rewirer.step()


def test_a_scaler_is_no_concern():
    layer, optimizer = live()
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(3):
        optimizer.zero_grad()
        scaler.scale(layer.weight_values.sum()).backward()
        scaler.step(optimizer)
        scaler.update()


# ---- how it looks -------------------------------------------------------------------------------


def test_steps_look_only_where_something_has_changed(monkeypatch):
    layer, optimizer = live(adamw, 2)
    looks, look = [], step_check._look
    monkeypatch.setattr(step_check, "_look", lambda *a: looks.append(a) or look(*a))
    for _ in range(3):
        step(layer, optimizer)
    assert len(looks) == 0
    changes = [
        lambda: optimizer.load_state_dict(optimizer.state_dict()),
        lambda: place(at(BEFORE), [1, 2, 3], torch.ones(3)),  # another layer
        lambda: [layer.load_state_dict(at(p).state_dict()) for p in (AFTER, BEFORE)],
    ]
    for count, change in enumerate(changes, 1):
        change()
        for _ in range(3):
            step(layer, optimizer)
        assert len(looks) == count


def test_parameters_can_be_swapped_after_a_change_of_sizes():
    layer, optimizer = live(adamw)
    optimizer.state.clear()
    layer.load_state_dict(at([1, 2, 3]).state_dict())
    step(layer, optimizer)
    optimizer.zero_grad()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        assert layer.double().weight_values.dtype == torch.float64
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
