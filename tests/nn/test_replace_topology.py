"""Replacing the pattern of a layer, and what becomes of graphs recorded before."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.nn_cases import ARGUMENTS, check_layer, layer, states_equal, swap_pattern

from dsr_kernels.topology import Topology


def test_replace_topology_keeps_the_parameter_and_drops_its_grad():
    conv, x = layer(**ARGUMENTS), torch.randn(2, 6, 8, 8)
    parameter = conv.weight_values
    conv(x).sum().backward()
    swap_pattern(conv, 40)
    assert conv.weight_values is parameter
    assert parameter.grad is None
    assert conv.nnz == 40
    check_layer(conv, x)


def test_training_goes_on_while_an_old_loss_is_still_alive():
    """An old graph keeps autograd's record of the values' size alive: it must not come back."""
    conv, x = layer(**ARGUMENTS), torch.randn(2, 6, 8, 8)
    calls = []
    conv.weight_values.register_post_accumulate_grad_hook(lambda p: calls.append(p.grad.shape))
    losses = []
    for nnz in (32, 40, 25, 108, 1):
        swap_pattern(conv, nnz)
        losses.append(conv(x).sum())
        losses[-1].backward()
        assert conv.weight_values.grad.shape == (nnz, 1)
    assert calls == [(32, 1), (40, 1), (25, 1), (108, 1), (1, 1)]


@pytest.mark.parametrize("nnz", [32, 40])
@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_backward_through_an_older_pattern_is_refused(nnz, input_grad, frozen):
    conv = layer(**ARGUMENTS)
    assert conv.nnz == 32
    conv.weight_values.requires_grad_(not frozen)
    x = torch.randn(2, 6, 8, 8, requires_grad=input_grad)
    loss = conv(x).sum()
    swap_pattern(conv, nnz)
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        loss.backward()
    assert conv.weight_values.grad is None


def test_backward_after_an_optimizer_step_is_refused():
    conv = layer(**ARGUMENTS)
    x = torch.randn(2, 6, 8, 8, requires_grad=True)
    loss = conv(x).sum()
    loss.backward(retain_graph=True)
    torch.optim.SGD(conv.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        loss.backward()


def test_replace_topology_refuses_wrong_patterns_and_changes_nothing():
    conv = layer(**ARGUMENTS)
    before = copy.deepcopy(conv)
    good = Topology.random(conv.weight_shape, 20)
    crow, col, values = good.crow_indices, good.col_indices, torch.randn(20)
    for arguments, message in (
        ((crow, col, values[:-1]), r"values: expected shape \(20, 1\) or \(20,\)"),
        ((crow, col, values.double()), "values: expected"),
        ((crow, col.flip(0), values), "col_indices"),
        ((crow[:-1], col, values), "crow_indices"),
        ((crow, col.long(), values), "col_indices: expected int32"),
    ):
        with pytest.raises(ValueError, match=message):
            conv.replace_topology(*arguments)
    assert states_equal(conv, before)
