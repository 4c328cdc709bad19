"""Patterns: what is accepted, how they are drawn, and how many non-zeros each layer gets."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.distribution import apportion, budget, exact_fraction, layer_nnz
from dsr_kernels.topology import Topology

SHAPE = (3, 2, 2, 2)  # rows of 8


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def test_valid_pattern():
    topology = Topology(SHAPE, ints(0, 2, 2, 4), ints(1, 7, 0, 3)).validate()
    assert (topology.nnz, topology.numel, topology.rows, topology.row_length) == (4, 24, 3, 8)
    assert topology.density == 4 / 24
    assert topology.linear_positions().tolist() == [1, 7, 16, 19]
    assert "nnz=4" in repr(topology)


@pytest.mark.parametrize(
    "crow, col, message",
    [
        ((0, 2, 2, 4), (7, 1, 0, 3), "col_indices: expected strictly ascending.*got 1 after 7"),
        ((0, 2, 2, 4), (1, 1, 0, 3), "col_indices: expected strictly ascending"),
        ((0, 2, 2, 4), (1, 7, 3, 3), "col_indices: expected strictly ascending"),
        ((0, 2, 2, 4), (1, 8, 0, 3), r"col_indices: expected columns in \[0, 8\).*got 0 to 8"),
        ((0, 2, 2, 4), (-1, 7, 0, 3), r"col_indices: expected columns in \[0, 8\)"),
        ((0, 3, 2, 4), (1, 2, 3, 4), "crow_indices: expected to never decrease"),
        ((0, 2, 2, 3), (1, 7, 0, 3), "crow_indices: expected to run from 0 to nnz = 4"),
        ((1, 2, 2, 4), (1, 7, 0, 3), "crow_indices: expected to run from 0"),
        ((0, 2, 4), (1, 7, 0, 3), "crow_indices: expected 4 entries for the 3 rows"),
    ],
)
def test_refuses_wrong_patterns(crow, col, message):
    with pytest.raises(ValueError, match=message):
        Topology(SHAPE, ints(*crow), ints(*col)).validate()


def test_refuses_wrong_tensors():
    with pytest.raises(ValueError, match=r"col_indices: expected int32, got torch.int64"):
        Topology(SHAPE, ints(0, 2, 2, 4), torch.tensor([1, 7, 0, 3])).validate()
    with pytest.raises(ValueError, match=r"crow_indices: expected a contiguous 1-D"):
        Topology(SHAPE, ints(0, 0, 2, 2, 2, 2, 4, 4)[::2], ints(1, 7, 0, 3)).validate()
    for shape in ((3,), (3, 0), (3, 2, 2, 2, 2), (2, 2**31), (2, 1.5)):
        with pytest.raises(ValueError, match="weight_shape"):
            Topology.random(shape, 1)


def test_columns_may_fall_where_a_row_starts_even_after_empty_rows():
    Topology((5, 8), ints(0, 0, 2, 2, 2, 4), ints(6, 7, 0, 1)).validate()


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 40), length=st.integers(1, 60), seed=st.integers(0, 9), data=st.data())
def test_random_patterns_are_valid_and_exact(rows, length, seed, data):
    nnz = data.draw(st.integers(0, rows * length))
    generator = torch.Generator().manual_seed(seed)
    topology = Topology.random((rows, length), nnz, generator=generator).validate()
    assert topology.nnz == nnz
    positions = topology.linear_positions()
    assert positions.unique().numel() == nnz
    again = Topology.random((rows, length), nnz, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(again.linear_positions(), positions)


def test_random_patterns_differ_and_follow_the_default_generator():
    torch.manual_seed(3)
    first, second = (Topology.random((64, 64), 100).linear_positions() for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(Topology.random((64, 64), 100).linear_positions(), first)


def test_random_positions_are_uniform():
    counts = torch.zeros(50)
    for seed in range(400):
        generator = torch.Generator().manual_seed(seed)
        counts[Topology.random((5, 10), 10, generator=generator).linear_positions()] += 1
    assert ((counts - 80).abs() < 5 * 8).all()  # 80 expected each, five standard deviations


def test_random_pattern_of_more_than_int32_elements():
    topology = Topology.random((70_000, 40_000), 5000).validate()
    assert topology.numel > 2**31
    assert topology.linear_positions().max() > 2**31


@pytest.mark.parametrize("nnz", [-1, 25, 1.0, True])
def test_refuses_wrong_nnz(nnz):
    with pytest.raises(ValueError, match="nnz: expected an integer in"):
        Topology.random(SHAPE, nnz)


def test_from_mask_and_magnitude():
    weight = torch.tensor([[0.0, -3.0, 1.0], [0.5, 0.0, 2.0]])
    assert Topology.from_mask(weight).validate().linear_positions().tolist() == [1, 2, 3, 5]
    largest = Topology.from_dense_magnitude(weight, 2).validate()
    assert largest.linear_positions().tolist() == [1, 5]
    with pytest.raises(ValueError, match="weight: expected finite"):
        Topology.from_dense_magnitude(weight / 0, 2)


def test_floors_what_the_caller_wrote_not_its_binary_neighbour():
    assert math.floor((1 - 0.9) * 1000) == 99  # the surprise
    assert budget(1000, 0.9) == 100
    assert budget(10, 0.7) == 3
    assert budget(1000, 0.999) == 1
    assert budget(5, 0.99) == 1  # never empty
    assert exact_fraction(1e-05) == Fraction(1, 100_000)


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, float("nan"), "0.9", None, True])
def test_refuses_wrong_sparsity(sparsity):
    with pytest.raises(ValueError, match="sparsity: expected a number in"):
        budget(100, sparsity)


WRN_LIKE = [(32, 16, 3, 3), (32, 32, 3, 3), (64, 32, 3, 3), (128, 128, 3, 3), (10, 128)]


def test_uniform_floors_each_layer():
    sizes = [math.prod(shape) for shape in WRN_LIKE]
    assert layer_nnz(WRN_LIKE, 0.9) == [size // 10 for size in sizes]


@pytest.mark.parametrize("distribution", ["er", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.8, 0.9, 0.98, 0.999])
def test_er_and_erk_hit_the_global_budget_exactly(distribution, sparsity):
    sizes = [math.prod(shape) for shape in WRN_LIKE]
    counts = layer_nnz(WRN_LIKE, sparsity, distribution)
    assert sum(counts) == budget(sum(sizes), sparsity)
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))


def test_erk_densities_follow_the_formula():
    counts = layer_nnz(WRN_LIKE, 0.98, "erk")
    raw = [sum(shape) / math.prod(shape) for shape in WRN_LIKE]
    density = [c / math.prod(shape) for c, shape in zip(counts, WRN_LIKE, strict=True)]
    scale = [d / r for d, r in zip(density, raw, strict=True)]
    assert max(scale) / min(scale) < 1.01


def test_erk_layers_above_density_one_become_dense_and_the_rest_is_rescaled():
    shapes = [(4, 4), (512, 512, 3, 3), (512, 256, 3, 3)]
    counts = layer_nnz(shapes, 0.5, "erk")
    assert counts[0] == 16
    assert sum(counts) == budget(sum(math.prod(s) for s in shapes), 0.5)
    raw = [sum(s) for s in shapes[1:]]
    assert counts[1] / counts[2] == pytest.approx(raw[0] / raw[1], rel=1e-4)


def test_fixed_layers_stand_outside_the_budget():
    counts = layer_nnz(WRN_LIKE, 0.9, "erk", fixed={0: 77})
    assert counts[0] == 77
    assert sum(counts[1:]) == budget(sum(math.prod(s) for s in WRN_LIKE[1:]), 0.9)
    assert layer_nnz([(4, 4)], 0.9, "erk", fixed={0: 3}) == [3]


def test_refuses_an_unknown_distribution():
    with pytest.raises(ValueError, match="distribution: unknown value"):
        layer_nnz(WRN_LIKE, 0.9, "gaussian")


@settings(max_examples=300, deadline=None)
@given(data=st.data(), layers=st.integers(1, 8))
def test_apportion_is_exact_and_bounded(data, layers):
    capacities = data.draw(st.lists(st.integers(1, 50), min_size=layers, max_size=layers))
    weights = data.draw(st.lists(st.integers(1, 1000), min_size=layers, max_size=layers))
    total = data.draw(st.integers(layers, sum(capacities)))
    shares = apportion(total, weights, capacities)
    assert sum(shares) == total
    assert all(1 <= share <= cap for share, cap in zip(shares, capacities, strict=True))


def test_apportion_by_largest_remainder():
    assert apportion(7, [50, 30, 20], [9, 9, 9]) == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert apportion(7, [50, 30, 20], [3, 9, 9]) == [3, 2, 2]  # 3 at most, then 2.4, 1.6
    assert apportion(7, [1000, 1, 1], [9, 9, 9]) == [5, 1, 1]  # never none


def test_apportion_refuses_the_impossible():
    with pytest.raises(ValueError, match="cannot be shared"):
        apportion(1, [1, 1], [5, 5])
