"""No optimizer steps a sparse layer with state of the pattern that it had before a load."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.optimizer_cases import AFTER, BEFORE, place
from helpers.step_cases import adamw, at, live, refused, sgd, step
from torch.nn.utils import prune

from dsr_kernels.rewiring import Static

ANOTHER = "of SparseLinear of .* belongs to the pattern that it had before"


@pytest.mark.parametrize("make", [sgd, adamw, torch.optim.Adam, torch.optim.Adafactor])
@pytest.mark.parametrize("steps", [1, 3])
def test_another_pattern_beside_live_state_is_refused(make, steps):
    layer, optimizer = live(make, steps)
    layer.load_state_dict(at(AFTER).state_dict())
    refused(layer, optimizer, ANOTHER + ".*load the optimizer's state")
    layer.load_state_dict(at([0, 1, 2, 3, 4, 5]).state_dict())  # a third one
    refused(layer, optimizer, ANOTHER)
    layer.load_state_dict(at(BEFORE).state_dict())  # back again
    step(layer, optimizer)
    layer.load_state_dict(at(AFTER).state_dict())
    optimizer.state.pop(layer.weight_values)
    step(layer, optimizer)


def test_each_optimizer_of_a_layer_is_refused():
    layer, optimizer = live()
    second = adamw(layer.parameters())
    step(layer, second)
    layer.load_state_dict(at(AFTER).state_dict())
    refused(layer, optimizer, ANOTHER)
    refused(layer, second, ANOTHER)
    second.load_state_dict(second.state_dict())
    step(layer, second)
    refused(layer, optimizer, ANOTHER)


def test_another_pattern_of_parametrized_values_is_refused():
    layer = at(BEFORE)
    prune.identity(layer, "weight_values")
    optimizer = sgd(layer.parameters())
    step(layer, optimizer)
    saved = copy.deepcopy(layer.state_dict())
    saved["col_indices"] = at(AFTER).col_indices.clone()
    saved["crow_indices"] = at(AFTER).crow_indices.clone()
    layer.load_state_dict(saved)
    refused(layer, optimizer, ANOTHER)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("order", ["model first", "optimizer first"])
def test_model_and_optimizer_loaded_in_either_order(make, order):
    layer, optimizer = live(make)
    other, its = live(make)
    place(other, AFTER, torch.ones(6))
    loads = [
        lambda: layer.load_state_dict(other.state_dict()),
        lambda: optimizer.load_state_dict(copy.deepcopy(its.state_dict())),
    ]
    for load in loads if order == "model first" else loads[::-1]:
        load()
    for _ in range(2):
        step(layer, optimizer)
        step(other, its)
    assert torch.equal(layer.weight_values, other.weight_values)


def test_loads_that_no_state_belongs_to_are_not_refused():
    layer, optimizer = live(torch.optim.SGD)
    layer.load_state_dict(at(AFTER).state_dict())  # SGD without momentum has no state
    step(layer, optimizer)
    layer, optimizer = live(sgd)
    layer.load_state_dict(layer.state_dict())  # the same pattern
    step(layer, optimizer)
    layer.load_state_dict(at(AFTER).state_dict())
    step(layer, sgd(layer.parameters()))  # a new one


def test_a_pattern_replaced_by_hand_is_the_callers():
    layer, optimizer = live()
    place(layer, AFTER, torch.ones(6))
    step(layer, optimizer)


def test_state_that_the_caller_has_given_the_new_size_is_left_alone():
    layer, optimizer = live()
    layer.load_state_dict(at([1, 2, 3]).state_dict())
    optimizer.state[layer.weight_values]["momentum_buffer"] = torch.zeros(3, 1)
    step(layer, optimizer)


def test_a_rewirer_moves_the_state_and_nothing_is_refused():
    layer, optimizer = live(adamw)
    rewirer = Static(layer, optimizer)
    for positions in (AFTER, [1, 2, 3], BEFORE):
        layer.load_state_dict(at(positions).state_dict())
        step(layer, optimizer)
    assert rewirer.nnz == 6
