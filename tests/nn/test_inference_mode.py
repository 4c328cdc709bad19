"""A load or a rewire under torch.inference_mode leaves a layer that trains, as nn.Linear does."""

from __future__ import annotations

import pytest
import torch

import dsr_kernels
from dsr_kernels import SparseLinear
from dsr_kernels.nn import accumulators

X = torch.randn(3, 4)


def load_of_another_nnz(layer: SparseLinear) -> None:
    layer.load_state_dict(SparseLinear(4, 3, nnz=7).state_dict())


def load_of_the_same_nnz(layer: SparseLinear) -> None:
    layer.load_state_dict(SparseLinear(4, 3, nnz=5).state_dict())


def dense_load(layer: SparseLinear) -> None:
    layer.load_state_dict(torch.nn.Linear(4, 3).state_dict())


def replace(layer: SparseLinear) -> None:
    other = SparseLinear(4, 3, nnz=6)
    layer.replace_topology(other.crow_indices, other.col_indices, other.weight_values)


@pytest.mark.parametrize("change", [load_of_another_nnz, load_of_the_same_nnz, dense_load, replace])
def test_a_change_under_inference_mode_leaves_a_layer_that_trains(change) -> None:
    accumulators._references_of_none.cache_clear()  # as in a process whose first load it is
    layer = SparseLinear(4, 3, nnz=5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.inference_mode():
        change(layer)
        expected = layer(X)
    y = layer(X)
    torch.testing.assert_close(y, expected.clone())
    y.square().sum().backward()
    before = layer.weight_values.detach().clone()
    optimizer.step()
    assert (layer.weight_values != before).any()
    assert not any(t.is_inference() for t in layer.state_dict(keep_vars=True).values())
    layer.load_state_dict(SparseLinear(4, 3, nnz=2).state_dict())
    layer(X).sum().backward()


def test_a_layer_made_under_inference_mode_can_be_changed_there() -> None:
    with torch.inference_mode():
        layer = SparseLinear(4, 3, nnz=5)
        for change in (replace, load_of_another_nnz, load_of_the_same_nnz, dense_load):
            change(layer)
            torch.testing.assert_close(layer(X), X @ layer.to_dense().T + layer.bias)


def test_sparsify_and_densify_under_inference_mode_give_models_that_train() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    with torch.inference_mode():
        built = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
        found = [dsr_kernels.sparsify(m, 0.5, preset="all") for m in (model, built)]
        found.append(dsr_kernels.densify(found[0]))
    for made in found:
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        made(X).square().sum().backward()
        optimizer.step()
