"""How many weights layers of blocks get: whole blocks, within the budget."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dsr_kernels import named_sparse_modules, sparsify, summary
from dsr_kernels.backends.blocks import BLOCK_SIZES
from dsr_kernels.distribution import budget, check_uniform, layer_nnz, whole_blocks
from dsr_kernels.models import lenet_300_100, wrn_28
from dsr_kernels.models.layers import lay_out_
from dsr_kernels.rewiring.allocation import even_trade
from dsr_kernels.topology import fitting_block_size

LAYER = st.tuples(st.integers(0, 300), st.integers(1, 40), st.sampled_from(BLOCK_SIZES))


def dense_model() -> nn.Module:
    """Output channels 8, 24 in two groups, 10: of blocks of 8, 4 and 2."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 24, 3, groups=2), nn.Flatten(), nn.Linear(96, 10)
    )


def layers_of(model: nn.Module) -> list:
    return [module for _, module in named_sparse_modules(model)]


@given(st.lists(LAYER, min_size=1, max_size=6), st.data())
def test_counts_in_whole_blocks(layers: list, data: st.DataObject) -> None:
    sizes = [most * block for _, most, block in layers]
    counts = [min(count, size) for (count, _, _), size in zip(layers, sizes, strict=True)]
    blocks = [block for _, _, block in layers]
    if sum(counts) < sum(blocks):
        with pytest.raises(ValueError, match=f"too few for {len(layers)} layers .* {sum(blocks)}"):
            whole_blocks(counts, sizes, blocks)
        return
    shares = whole_blocks(counts, sizes, blocks)
    left = sum(counts) - sum(shares)
    assert left >= 0
    for share, size, block in zip(shares, sizes, blocks, strict=True):
        assert share % block == 0 and block <= share <= size
        assert left < block or share == size  # nothing more fits
    if all(count and count % block == 0 for count, block in zip(counts, blocks, strict=True)):
        assert shares == counts


def test_what_is_rounded_off_goes_to_the_largest_remainders() -> None:
    assert whole_blocks([12, 7, 13], [80, 80, 80], [8, 8, 8]) == [8, 8, 16]
    assert whole_blocks([4, 4, 12], [80, 80, 80], [8, 8, 1]) == [8, 8, 4]  # at least a block each


@given(
    st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 50), st.sampled_from(BLOCK_SIZES)),
        min_size=1,
        max_size=5,
    ),
    st.sampled_from(["uniform", "er", "erk"]),
    st.floats(0.0, 0.9),
)
def test_distributions_keep_to_their_budgets(layers: list, distribution: str, sparsity) -> None:
    shapes = [(rows * block, length) for rows, length, block in layers]
    blocks = [block for _, _, block in layers]
    total = budget(sum(math.prod(shape) for shape in shapes), sparsity)
    if distribution != "uniform" and total < sum(blocks):
        with pytest.raises(ValueError, match="sparsity: "):
            layer_nnz(shapes, sparsity, distribution, block_sizes=blocks)
        return
    counts = layer_nnz(shapes, sparsity, distribution, block_sizes=blocks)
    assert all(count % block == 0 for count, block in zip(counts, blocks, strict=True))
    plain = layer_nnz(shapes, sparsity, distribution)
    if distribution == "uniform":
        for count, single, block in zip(counts, plain, blocks, strict=True):
            assert count == max(block, single - single % block)
    else:
        assert sum(plain) == total >= sum(counts) > total - max(blocks) - (total == 0)


def test_fixed_layers_stand_outside() -> None:
    shapes = [(8, 10), (16, 10), (10, 10)]
    counts = layer_nnz(shapes, 0.5, "erk", fixed={0: 16}, block_sizes=[8, 16, 2])
    assert counts[0] == 16 and sum(counts[1:]) == 130 and counts[1] % 16 == counts[2] % 2 == 0
    with pytest.raises(ValueError, match=r"expected a multiple of block_size=8, got 20; .* 16"):
        layer_nnz(shapes, 0.5, "erk", fixed={0: 20}, block_sizes=[8, 16, 2])


@pytest.mark.parametrize("keep", ["random", "magnitude", "kernels"])
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
@pytest.mark.parametrize("over", ["converted", "model"])
def test_sparsify_takes_the_largest_fitting_block(over: str, distribution: str, keep: str) -> None:
    dense = dense_model()
    options = {"distribution": distribution, "over": over, "keep": keep, "block_size": 8}
    model = sparsify(dense, 0.6, exclude=["0"], overrides={"3": 0.5}, **options, preset="all")
    stem, grouped, head = model[0], *layers_of(model)
    assert type(stem) is nn.Conv2d
    assert [layer.block_size for layer in (grouped, head)] == [4, 2]
    assert head.nnz == 480
    every = sum(m.weight.numel() for m in dense if hasattr(m, "weight"))
    limit = budget(every, 0.6) - stem.weight.numel() - 480
    if over == "converted":
        limit = budget(24 * 4 * 9, 0.6)
    whole = 4 * 9 if keep == "kernels" else 4
    assert grouped.nnz == limit - limit % whole
    for layer, source in ((grouped, dense[1]), (head, dense[3])):
        there = layer.to_dense() != 0
        assert torch.equal(layer.to_dense()[there], source.weight[there])


def test_a_budget_below_a_block_of_each_layer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"too few for 3 layers .* 14 weights") as caught:
        sparsify(dense_model(), 0.995, "erk", block_size=8, preset="all")
    reach = float(str(caught.value).split()[-1])
    model = sparsify(dense_model(), reach, "erk", block_size=8, preset="all")
    assert [layer.nnz for layer in layers_of(model)] == [8, 4, 2]
    with pytest.raises(ValueError, match="of all 2040 weights cannot be met"):
        sparsify(dense_model(), 0.894, exclude=["0"], over="model", block_size=8, preset="all")


@pytest.mark.parametrize("bad", [3, 64, 0, -1, True, 2.0, "8", None])
def test_impossible_block_sizes_are_named(bad: object) -> None:
    with pytest.raises(ValueError, match=r"block_size: expected one of \(1, 2, 4, 8, 16, 32\)"):
        sparsify(dense_model(), 0.5, block_size=bad, preset="all")


def test_summary_says_which_blocks_there_are() -> None:
    model = sparsify(dense_model(), 0.5, block_size=8, preset="all")
    notes = {layer.name: layer.note for layer in summary(model).layers}
    assert notes == {
        "0": "blocks of 8",
        "1": "blocks of 4: 12 output channels of a group do not divide by 8",
        "3": "blocks of 2: 10 output channels do not divide by 8",
    }
    assert {layer.note for layer in summary(sparsify(dense_model(), 0.5, preset="all")).layers} == {
        ""
    }
    table = summary(model)
    assert table.sparse_nnz == sum(layer.nnz for layer in layers_of(model))
    held = sum(t.nbytes for layer in layers_of(model) for t in layer.parameters())
    held += sum(
        t.nbytes for layer in layers_of(model) for t in (layer.crow_indices, layer.col_indices)
    )
    assert table.bytes == held


@given(st.integers(1, 200), st.sampled_from(BLOCK_SIZES), st.integers(1, 4))
def test_the_fitting_block_size_is_the_largest_divisor(rows, wanted, groups) -> None:
    found = fitting_block_size((rows * groups, 3), wanted, groups)
    assert found == max(size for size in BLOCK_SIZES if size <= wanted and rows % size == 0)


def test_models_of_blocks() -> None:
    model = wrn_28(0.5, 0.9, num_classes=10, block_size=16)
    layers = layers_of(model)
    assert {layer.block_size for layer in layers} == {8, 16}
    for layer in layers:
        assert layer.block_size == fitting_block_size(layer.weight_shape, 16)
        assert layer.nnz == budget(layer.numel, 0.9, layer.block_size)
    assert {layer.block_size for layer in layers_of(lenet_300_100(block_size=32))} == {4, 2}


@pytest.mark.parametrize("granularity", ["weight", "kernel"])
@pytest.mark.parametrize("distribution", ["uniform", "er", "erk"])
def test_models_are_laid_out_anew_in_blocks(distribution: str, granularity: str) -> None:
    model = wrn_28(0.5, 0.8, block_size=8)
    lay_out_(model, 0.8, distribution, granularity, torch.Generator().manual_seed(0))
    layers = layers_of(model)
    shapes, sizes = [x.weight_shape for x in layers], [x.block_size for x in layers]
    expected = layer_nnz(shapes, 0.8, distribution, block_sizes=sizes)
    for layer, nnz in zip(layers, expected, strict=True):
        whole = layer.block_size
        if granularity == "kernel":
            whole *= math.prod(layer.weight_shape[2:])
        assert layer.nnz == max(whole, nnz - nnz % whole)
        assert layer.weight_values.shape == (layer.blocks, layer.block_size)
        layer.topology.validate()


def test_a_uniform_sparsity_must_leave_every_layer_a_block() -> None:
    sizes, blocks = {"a": 1600, "b": 1000}, {"a": 16, "b": 2}
    check_uniform(sizes, 0.99, blocks)
    with pytest.raises(ValueError) as caught:
        check_uniform(sizes, 0.9901, blocks)
    assert str(caught.value) == (
        "sparsity: 0.9901 leaves layer 'a' less than a block of 16 of its 1600 weights; reachable: "
        "a sparsity from 0 to 0.99, with distribution 'er' or 'erk' a sparsity from 0 to 0.993076"
    )


def test_layers_trade_only_what_comes_out_even() -> None:
    assert even_trade([1, 4], [2, 0], [8, 2]) == ([1, 4], [2, 0])
    assert even_trade([1, 4], [2, 1], [8, 2]) == ([1, 1], [1, 1])
    assert even_trade([0, 3], [2, 3], [16, 1]) == ([0, 3], [0, 3])
