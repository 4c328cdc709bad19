"""Layers that were given the same tensors: a change of one never leaves another torn."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.one_row import X, index, two_weights
from torch import nn

from dsr_kernels import SparseLinear
from dsr_kernels.rewiring import SET

AFTER = {2: 21, 3: 321}  # for X, by the number of weights


def changed(nnz: int) -> SparseLinear:
    layer = SparseLinear(4, 1, bias=False, nnz=nnz)
    values = torch.tensor([1.0, 2.0, 3.0])[:nnz]
    layer.replace_topology(index(0, nnz), index(0, 1, 2)[:nnz], values)
    return layer


def replace(layer: SparseLinear, nnz: int) -> None:
    now = changed(nnz)
    layer.replace_topology(now.crow_indices, now.col_indices, now.weight_values.detach())


CHANGES: dict[str, Callable[[SparseLinear, int], object]] = {
    "replace_topology": replace,
    "load": lambda layer, nnz: layer.load_state_dict(changed(nnz).state_dict()),
    "assign": lambda layer, nnz: layer.load_state_dict(changed(nnz).state_dict(), assign=True),
}


def by_attribute(a: SparseLinear, b: SparseLinear) -> None:
    b.crow_indices, b.col_indices = a.crow_indices, a.col_indices


def by_table(a: SparseLinear, b: SparseLinear) -> None:
    b._buffers["crow_indices"], b._buffers["col_indices"] = a.crow_indices, a.col_indices


def by_registering(a: SparseLinear, b: SparseLinear) -> None:
    for name in ("crow_indices", "col_indices"):
        delattr(b, name)
        b.register_buffer(name, getattr(a, name))


def columns_alone(a: SparseLinear, b: SparseLinear) -> None:
    b._buffers["col_indices"] = a.col_indices


SHARED_INDICES = (by_attribute, by_table, by_registering, columns_alone)


@pytest.mark.parametrize("nnz", AFTER)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("share", SHARED_INDICES)
def test_a_layer_whose_index_tensors_another_has_stays_whole(
    share: Callable[[SparseLinear, SparseLinear], None], change: str, first: bool, nnz: int
) -> None:
    a, b = two_weights(), two_weights()
    share(a, b)
    one, other = (a, b) if first else (b, a)
    CHANGES[change](one, nnz)
    assert one(X).item() == AFTER[nnz]
    assert other(X).item() == 201


def tied() -> nn.Sequential:
    """Two layers that are one weight: values and indices are the same objects."""
    a, b = two_weights(), two_weights()
    b.weight_values = a.weight_values
    by_attribute(a, b)
    return nn.Sequential(a, b)


@pytest.mark.parametrize("nnz", AFTER)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("change", ["replace_topology", "load"])
@pytest.mark.parametrize("copied", [False, True])
def test_layers_that_are_one_weight_change_together(
    copied: bool, change: str, first: int, nnz: int
) -> None:
    model = copy.deepcopy(tied()) if copied else tied()
    CHANGES[change](model[first], nnz)
    assert [layer(X).item() for layer in model] == [AFTER[nnz]] * 2
    loss = model[1 - first](X.clone().requires_grad_()).sum()
    assert model[1 - first].pattern() is not None
    loss.backward()
    assert model[0].weight_values.grad is model[1].weight_values.grad is not None


def test_a_layer_at_two_places_changes_at_both() -> None:
    layer = two_weights()
    model = nn.ModuleList([layer, layer])
    replace(model[1], 3)
    assert model[0](X).item() == 321


def values_alone() -> nn.Sequential:
    a, b = two_weights(), two_weights()
    b.weight_values = a.weight_values
    model = nn.Sequential(a, b)
    model.state_dict()  # from which layers learn their names
    return model


@pytest.mark.parametrize("nnz", AFTER)
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("change", ["replace_topology", "load"])
def test_values_that_were_given_another_pattern_are_refused_by_name(
    change: str, first: int, nnz: int
) -> None:
    model = values_alone()
    CHANGES[change](model[first], nnz)
    assert model[first](X).item() == AFTER[nnz]
    other, name, changed_name = model[1 - first], 1 - first, first
    says = rf"layer '{name}': it shares its weight_values with layer '{changed_name}'.*clone\(\)"
    uses = (lambda: other(X), other.state_dict, lambda: copy.deepcopy(other), other.double)
    for use in uses:
        with pytest.raises(RuntimeError, match=says):
            use()
    assert model[first](X).item() == AFTER[nnz]
    replace(other, nnz)  # the same pattern
    assert [layer(X).item() for layer in model] == [AFTER[nnz]] * 2


def test_shared_values_may_become_a_layers_own_again() -> None:
    model = values_alone()
    values = model[1].weight_values.detach().clone()
    replace(model[0], 3)
    model[1].weight_values = nn.Parameter(values)
    assert (model[0](X).item(), model[1](X).item()) == (321, 201)


@pytest.mark.parametrize("make", [tied, values_alone])
def test_whole_models_with_shared_tensors_load_and_rewire(
    make: Callable[[], nn.Sequential],
) -> None:
    model, saved = make(), make()
    for layer in saved:
        replace(layer, 3)
    model.load_state_dict(saved.state_dict())
    assert [layer(X).item() for layer in model] == [321, 321]
    rewirer = SET(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1)
    for _ in range(3):
        rewirer.rewire()
        one, other = (layer(X).item() for layer in model)
        assert one == other


@pytest.mark.parametrize("shared", ["one weight", "values alone", "indices alone"])
def test_a_layer_outside_the_model_that_is_rewired(shared: str) -> None:
    """A rewire looks for who shares tensors among all layers, those of no rewirer too."""
    torch.manual_seed(0)
    model, x = nn.Sequential(SparseLinear(16, 12, sparsity=0.5)), torch.randn(3, 16)
    (own,) = model
    other = copy.deepcopy(own)
    if shared != "indices alone":
        other.weight_values = own.weight_values
    if shared != "values alone":
        other.crow_indices, other.col_indices = own.crow_indices, own.col_indices
    before = other(x).detach()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    SET(model, optimizer, every=1).rewire()
    if shared == "indices alone":
        assert torch.equal(other(x), before)
    elif shared == "one weight":
        assert torch.equal(other(x), own(x))
    else:
        with pytest.raises(RuntimeError, match=r"shares its weight_values"):
            other(x)
