"""By what the weights of a block, or of a kernel, are judged together."""

from __future__ import annotations

import pytest
import torch
from helpers.method_cases import place

from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.rewiring import DSR, GMP, SET
from dsr_kernels.training.recipe import load

EVEN, PEAKED, LARGE = [1.0] * 4, [3.2, 0.0, 0.0, 0.0], [5.0] * 4
PRUNED = {"mean": {1}, "l2": {0}}  # means 1, 0.8, 5; roots of the mean square 1, 1.6, 5


def blocks() -> torch.nn.Module:
    """Blocks of 4 output channels at columns 0, 1 and 2 of 9."""
    layer = SparseLinear(9, 4, bias=False, nnz=12, block_size=4)
    crow, col = torch.tensor([0, 3]).int(), torch.tensor([0, 1, 2]).int()
    layer.replace_topology(crow, col, torch.tensor([EVEN, PEAKED, LARGE]))
    return torch.nn.Sequential(layer)


def kernels() -> torch.nn.Module:
    """Kernels of 2 x 2 weights from inputs 0, 1 and 2 of 9."""
    layer = SparseConv2d(9, 1, 2, bias=False, nnz=12)
    place(layer, torch.arange(12), torch.tensor([*EVEN, *PEAKED, *LARGE]))
    return torch.nn.Sequential(layer)


def lost(model: torch.nn.Module, size: int) -> set[int]:
    """Which of the three are gone."""
    return {0, 1, 2} - {int(column) // size for column in model[0].col_indices[::size]}


@pytest.mark.parametrize("score", PRUNED)
def test_blocks(score):
    for method, arguments in (
        (DSR, {"threshold": "exact", "prune_count": 4}),
        (SET, {"fraction": 0.3}),
        (GMP, {"final_sparsity": 0.77, "end": 1}),
    ):
        model = blocks()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        rewirer = method(model, optimizer, block_score=score, **arguments)
        rewirer.iteration = 1
        rewirer.rewire()
        assert lost(model, 1) == PRUNED[score], method.__name__


@pytest.mark.parametrize("score", PRUNED)
def test_whole_kernels(score):
    model = kernels()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    arguments = {"threshold": "exact", "prune_count": 4, "granularity": "kernel"}
    DSR(model, optimizer, block_score=score, **arguments).rewire()
    assert lost(model, 4) == PRUNED[score]


def test_single_weights_are_judged_alike():
    found = []
    for score in PRUNED:
        torch.manual_seed(0)
        model = torch.nn.Sequential(SparseLinear(9, 7, sparsity=0.5))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        DSR(model, optimizer, prune_fraction=0.3, threshold="exact", block_score=score).rewire()
        found.append(model[0].topology.linear_positions())
    assert torch.equal(*found)


def test_other_scores_are_refused():
    model = blocks()
    with pytest.raises(ValueError, match="block_score: unknown value"):
        DSR(model, torch.optim.SGD(model.parameters(), 0.1), block_score="l1")


def test_recipes_have_the_key():
    recipe = load.load("wrn28_2-digits", ["rewiring.block_score=l2"])
    assert recipe.rewiring.block_score == "l2"
