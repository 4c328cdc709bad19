"""Sparsities that can be met and such that cannot; whole kernels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import dsr_kernels
from dsr_kernels import SparseConv2d, named_sparse_modules
from dsr_kernels.distribution import apportion, check_uniform
from dsr_kernels.models import lenet_300_100
from dsr_kernels.models.layers import lay_out_
from dsr_kernels.topology import Topology


def small_model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(32, 10))


def nonzeros(model: nn.Module) -> int:
    return sum(module.nnz for _, module in named_sparse_modules(model))


def test_too_few_weights_are_refused_with_what_can_be_reached():
    with pytest.raises(ValueError, match=r"reachable: a sparsity from 0 to 0\.9$"):
        apportion(1, [10, 10], [10, 10])
    with pytest.raises(ValueError, match=r"reachable: a sparsity from 0 to 0\.997302"):
        dsr_kernels.sparsify(small_model(), 0.999, preset="all")
    dsr_kernels.sparsify(
        small_model(), 0.997302, preset="all"
    )  # the end of the range named is in reach


def test_a_uniform_sparsity_must_leave_every_layer_a_weight():
    check_uniform({"a": 10_000, "b": 1000}, 0.999)
    with pytest.raises(ValueError) as caught:
        check_uniform({"a": 10_000, "b": 1000}, 0.9991)
    assert str(caught.value) == (
        "sparsity: 0.9991 leaves layer 'b' none of its 1000 weights; reachable: a sparsity from 0 "
        "to 0.999, with distribution 'er' or 'erk' a sparsity from 0 to 0.999818"
    )


@given(st.sampled_from(["uniform", "er", "erk"]), st.floats(0.2, 0.66))
def test_sparsity_over_the_whole_model_counts_dense_layers(distribution, sparsity):
    dense = small_model()
    total = sum(m.weight.numel() for m in dense if hasattr(m, "weight"))
    model = dsr_kernels.sparsify(
        dense,
        sparsity,
        distribution,
        exclude=["0"],
        overrides={"3": 0.5},
        over="model",
        preset="all",
    )
    kept = model[0].weight.numel() + nonzeros(model)
    assert kept == dsr_kernels.distribution.budget(total, sparsity)
    assert model[3].nnz == 160


def test_excluded_layers_can_be_too_big_for_a_sparsity():
    with pytest.raises(ValueError) as caught:
        dsr_kernels.sparsify(small_model(), 0.95, exclude=["1"], over="model", preset="all")
    assert str(caught.value) == (
        "sparsity: 0.95 of all 1112 weights cannot be met: 576 of them stay in layers that are "
        "dense or have a sparsity of their own; reachable: a sparsity from 0 to 0.480215"
    )
    model = dsr_kernels.sparsify(small_model(), 0.480215, exclude=["1"], over="model", preset="all")
    assert [module.nnz for _, module in named_sparse_modules(model)] == [1, 1]
    with pytest.raises(
        ValueError, match="over: unknown value 'all'; expected one of converted, model"
    ):
        dsr_kernels.sparsify(small_model(), 0.9, over="all", preset="all")


def whole_kernels(module: SparseConv2d) -> bool:
    mask = module.to_dense().detach().new_zeros(module.numel)
    mask[module.topology.linear_positions()] = 1
    return bool((mask.view(-1, 9).sum(1) % 9 == 0).all())


def test_whole_kernels_come_and_go_together():
    topology = Topology.random_kernels((16, 8, 3, 3), 300).validate()
    assert topology.nnz == 297  # 33 kernels
    model = dsr_kernels.sparsify(small_model(), 0.9, keep="kernels", preset="all")
    convolutions = [
        module for _, module in named_sparse_modules(model) if len(module.weight_shape) == 4
    ]
    assert all(whole_kernels(module) and module.nnz % 9 == 0 for module in convolutions)
    source = small_model()
    kept = dsr_kernels.sparsify(source, 0.5, keep="kernels", preset="all")
    at = kept[0].topology.linear_positions()
    assert torch.equal(kept[0].weight_values[:, 0], source[0].weight.flatten()[at])


@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_a_model_is_laid_out_anew(distribution):
    model = lenet_300_100(0.5)
    generator = torch.Generator().manual_seed(3)
    lay_out_(model, 0.9, distribution, "weight", generator)
    shapes = [module.weight_shape for _, module in named_sparse_modules(model)]
    counts = [module.nnz for _, module in named_sparse_modules(model)]
    assert counts == dsr_kernels.layer_nnz(shapes, 0.9, distribution)
    assert sum(counts) == 26_620
    assert all(module.weight_values.abs().max() > 0 for _, module in named_sparse_modules(model))
