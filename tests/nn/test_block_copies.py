"""Layers of blocks: conversion from dense ones, checkpoints, copies and other patterns."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.nn_cases import check_layer, layer, states_equal, swap_pattern
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

import dsr_kernels
from dsr_kernels import SparseConv1d, SparseConv2d, SparseLinear
from dsr_kernels.topology import Topology


def small(seed: int = 0, block_size: int = 4, **kwargs) -> SparseConv2d:
    return layer(4, 8, 3, seed=seed, block_size=block_size, **kwargs)


def same(one: nn.Module, other: nn.Module) -> bool:
    return states_equal(one, other) and torch.equal(one.to_dense(), other.to_dense())


# ---- from dense layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 8, 32])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv1d, nn.Conv2d])
def test_the_blocks_of_largest_mean_magnitude_are_kept(kind: type, size: int) -> None:
    torch.manual_seed(0)
    dense = kind(6, 3 * size) if kind is nn.Linear else kind(6, 3 * size, 3, padding=1)
    twin = getattr(dsr_kernels, f"Sparse{kind.__name__}")
    sparse = twin.from_dense(dense, nnz=5 * size, block_size=size)
    means = dense.weight.detach().abs().reshape(3, size, -1).mean(1)
    kept = means >= means.flatten().sort().values[-5]
    assert kept.sum() == 5
    mask = kept[:, None].expand(3, size, -1).reshape(dense.weight.shape)
    assert torch.equal(sparse.to_dense(), dense.weight * mask)
    assert torch.equal(sparse.bias, dense.bias)


@pytest.mark.parametrize("keep", ["random", "kernels", "magnitude"])
def test_a_sparsity_in_whole_blocks(keep: str) -> None:
    dense = nn.Conv2d(4, 16, 3)
    sparse = SparseConv2d.from_dense(dense, 0.9, keep=keep, block_size=8)
    assert sparse.nnz == (56 if keep != "kernels" else 72)  # 57 non-zeros; one kernel is 8 x 9
    there = sparse.to_dense() != 0
    assert torch.equal(sparse.to_dense()[there], dense.weight[there])
    twin = copy.deepcopy(sparse)
    assert twin.block_size == 8 and same(twin, sparse)


def test_a_mask_of_whole_blocks_and_one_that_breaks_some() -> None:
    dense = nn.Conv2d(2, 8, 3)
    mask = torch.zeros(8, 2, 3, 3, dtype=torch.bool)
    mask[4:8, 1, 0, 2] = mask[0:4, 0, 2, 2] = True
    sparse = SparseConv2d.from_dense(dense, mask=mask, block_size=4)
    assert torch.equal(sparse.to_dense(), dense.weight * mask)
    assert sparse.blocks == 2
    mask[5, 1, 0, 2] = mask[6, 1, 2, 1] = False
    message = "of rows 4 to 7, column 11, only 3 are there"
    with pytest.raises(ValueError, match=message):
        SparseConv2d.from_dense(dense, mask=mask, block_size=4)
    assert SparseConv2d.from_dense(dense, mask=mask).nnz == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_size": 3}, r"block_size: expected one of \(1, 2, 4, 8, 16, 32\), got 3"),
        ({"block_size": 64}, "block_size: expected one of .* got 64"),
        ({"block_size": 0}, "block_size: expected one of .* got 0"),
        ({"block_size": True}, "block_size: expected one of .* got True"),
        ({"block_size": 4.0}, r"block_size: expected one of .* got 4\.0"),
        ({"block_size": 8}, "divisor of the 12 output channels, got 8; the largest is 4"),
        (
            {"block_size": 4, "groups": 2},
            "divisor of the 6 output channels in each of 2 groups, got 4; the largest is 2",
        ),
        (
            {"block_size": 4, "nnz": 30},
            "multiple of block_size=4, got 30; the next one below is 28",
        ),
    ],
)
def test_impossible_block_sizes_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseConv2d(4, 12, 3, **arguments)
    groups = {"groups": arguments["groups"]} if "groups" in arguments else {}
    rest = {"nnz": 24, **{k: v for k, v in arguments.items() if k != "groups"}}
    with pytest.raises(ValueError, match=message):
        SparseConv2d.from_dense(nn.Conv2d(4, 12, 3, **groups), **rest)


def test_densify_takes_back_what_sparsify_made() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Flatten(2), nn.Conv1d(16, 8, 3), nn.Flatten(), nn.Linear(56, 10)
    )
    sparse = dsr_kernels.sparsify(dense, 0.5, block_size=16, preset="all")
    found = [m for _, m in dsr_kernels.named_sparse_modules(sparse)]
    assert [type(m) for m in found] == [SparseConv2d, SparseConv1d, SparseLinear]
    assert [m.block_size for m in found] == [16, 8, 2]
    back, x = dsr_kernels.densify(sparse), torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(back(x), sparse(x))
    for module, twin in zip(found, (back[0], back[2], back[4]), strict=True):
        assert torch.equal(module.to_dense(), twin.weight)
        there = twin.weight != 0
        assert there.sum() == module.nnz
    again = dsr_kernels.sparsify(back, 0.5, keep="magnitude", block_size=16, preset="all")
    assert all(map(torch.equal, again.state_dict().values(), sparse.state_dict().values()))


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_a_round_trip_into_another_pattern_and_nnz(sparsity: float, assign: bool) -> None:
    saved, module = small(1, sparsity=sparsity), small(2)
    parameter = module.weight_values
    state = pickle.loads(pickle.dumps(saved.state_dict()))
    module.load_state_dict(state, assign=assign)
    assert same(module, saved) and (module.weight_values is parameter) != assign
    assert module.weight_values.shape == (saved.blocks, 4)
    check_layer(module, torch.randn(2, 4, 6, 6))


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(("theirs", "ours"), [(1, 4), (4, 1), (2, 4), (8, 2)])
def test_a_checkpoint_of_another_block_size_is_refused(theirs: int, ours: int, assign) -> None:
    saved, module = nn.Sequential(small(1, theirs)), nn.Sequential(small(2, ours))
    before = copy.deepcopy(module.state_dict())
    message = f"0: expected weights with block_size={ours}, .* have block_size={theirs}"
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(saved.state_dict(), assign=assign)
    assert all(torch.equal(t, before[key]) for key, t in module.state_dict().items())


def test_values_that_do_not_fit_their_blocks_are_refused() -> None:
    state = small(1).state_dict()
    blocks = state["col_indices"].numel()
    for values in (state["weight_values"].flatten(), state["weight_values"][1:]):
        with pytest.raises(RuntimeError, match=rf"floating-point values of shape \({blocks}, 4\)"):
            small().load_state_dict({**state, "weight_values": values})


@pytest.mark.parametrize("assign", [False, True])
def test_a_dense_checkpoint_gives_the_blocks_that_have_a_weight(assign: bool) -> None:
    dense = nn.Conv2d(4, 8, 3)
    with torch.no_grad():
        dense.weight[dense.weight.abs() < 0.12] = 0
    module = small()
    module.load_state_dict(dense.state_dict(), assign=assign)
    assert torch.equal(module.to_dense(), dense.weight)
    blocks = dense.weight.view(2, 4, 36).ne(0).any(1).sum()
    assert module.blocks == blocks < 72 and module.nnz > dense.weight.count_nonzero()


def test_layers_that_torch_parametrizes_take_a_pattern_of_as_many_blocks() -> None:
    class Doubled(nn.Module):
        def forward(self, values: Tensor) -> Tensor:
            return 2 * values

    module, other, fewer = small(1), small(2), small(3, sparsity=0.9)
    for one in (module, other, fewer):
        parametrize.register_parametrization(one, "weight_values", Doubled())
    module.load_state_dict(other.state_dict())
    assert same(module, other)
    x = torch.randn(2, 4, 6, 6)
    torch.testing.assert_close(module(x), F.conv2d(x, other.to_dense(), other.bias))
    message = f"keeps its {module.blocks} blocks, but the checkpoint has {fewer.blocks}; "
    with pytest.raises(RuntimeError, match=message):
        module.load_state_dict(fewer.state_dict())
    pruned = small(4)
    prune.l1_unstructured(pruned, "weight_values", 0.5)
    assert pruned.to_dense().count_nonzero() == pruned.nnz // 2
    torch.testing.assert_close(pruned(x), F.conv2d(x, pruned.to_dense(), pruned.bias))


def test_fit_to_makes_room_for_the_blocks_of_a_checkpoint() -> None:
    saved, module = nn.Sequential(small(1, sparsity=0.9)), nn.Sequential(small(2))
    state = {key: tensor.clone() for key, tensor in saved.state_dict().items()}
    dsr_kernels.fit_to(module, {key: tensor.shape for key, tensor in state.items()})
    assert module[0].weight_values.shape == state["0.weight_values"].shape
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            tensor.copy_(state[key])
    assert same(module[0], saved[0])
    sizes = {key: tensor.shape for key, tensor in small(1, 2).state_dict().items()}
    message = r"'': expected weight_values \(blocks, 4\), crow_indices \(3,\) .* block_size=4, got"
    with pytest.raises(ValueError, match=message):
        dsr_kernels.fit_to(small(2), sizes)


def test_layers_from_before_blocks_are_of_single_weights() -> None:
    """Their pickles have no block_size; checkpoints never say one."""
    old = small(1, 1)
    attributes = {key: value for key, value in vars(old).items() if key != "block_size"}
    assert len(attributes) == len(vars(old)) - 1
    loaded = SparseConv2d.__new__(SparseConv2d)
    loaded.__setstate__(attributes)
    assert loaded.block_size == 1 and loaded.nnz == old.nnz and same(loaded, old)
    check_layer(loaded, torch.randn(2, 4, 6, 6))
    assert copy.deepcopy(loaded).topology.block_size == 1
    assert set(small(1).state_dict()) == set(old.state_dict())


# ---- copies, devices, other patterns -------------------------------------------------------------


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("copier", [copy.deepcopy, copy.copy, pickled])
def test_copies_keep_their_blocks(copier) -> None:
    module = small()
    twin = copier(module)
    assert twin.block_size == 4 and same(twin, module)
    check_layer(twin, torch.randn(2, 4, 6, 6))
    if copier is not copy.copy:
        swap_pattern(twin, 40)
        assert twin.nnz == 40 != module.nnz
        check_layer(module, torch.randn(2, 4, 6, 6))


def test_meta_then_to_empty_then_reset() -> None:
    with torch.device("meta"):
        module = SparseConv2d(4, 8, 3, nnz=80, block_size=8)
    assert module.weight_values.shape == (10, 8) and module.crow_indices.shape == (2,)
    module.to_empty(device="cpu").reset_parameters()
    assert module.topology.validate().nnz == 80
    assert 0 < module.weight_values.abs().max() <= 1 / 6  # torch's bound, of 36 inputs
    check_layer(module, torch.randn(2, 4, 6, 6))
    with torch.device("meta"):
        module = SparseConv2d(4, 8, 3, nnz=80, block_size=8)
    module.load_state_dict(small(1, 8).state_dict(), assign=True)
    assert same(module, small(1, 8))


@pytest.mark.parametrize("shape", [(6, 4), (24,)])
def test_replace_topology_takes_blocks_or_flat_values(shape: tuple[int, ...]) -> None:
    module, values = small(), torch.randn(shape)
    pattern = Topology.random((8, 4, 3, 3), 24, block_size=4)
    parameter = module.weight_values
    module.replace_topology(pattern.crow_indices, pattern.col_indices, values)
    assert module.weight_values is parameter and module.nnz == 24
    assert torch.equal(module.weight_values.detach(), values.view(6, 4))
    check_layer(module, torch.randn(2, 4, 6, 6))


def test_replace_topology_refuses_patterns_of_other_blocks() -> None:
    module = small()
    before = copy.deepcopy(module)
    other = Topology.random((8, 4, 3, 3), 24, block_size=2)
    with pytest.raises(ValueError, match=r"crow_indices: expected 3 entries for the 2 block rows"):
        module.replace_topology(other.crow_indices, other.col_indices, torch.randn(12, 4))
    fine = Topology.random((8, 4, 3, 3), 24, block_size=4)
    for values in (torch.randn(12, 2), torch.randn(24, 1), torch.randn(6)):
        with pytest.raises(ValueError, match=r"values: expected shape \(6, 4\) or \(24,\)"):
            module.replace_topology(fine.crow_indices, fine.col_indices, values)
    assert same(module, before)


def test_a_backward_through_an_older_pattern_raises() -> None:
    module = small()
    loss = module(torch.randn(2, 4, 6, 6)).sum()
    swap_pattern(module, module.nnz)
    with pytest.raises(RuntimeError, match="weights that no longer exist"):
        loss.backward()


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam], ids=lambda m: m.__name__)
def test_state_of_other_blocks_is_not_stepped_with(make: type) -> None:
    module = small()
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(module.parameters(), lr=0.1, **options)
    for nnz in (None, None, 40):  # state of its own blocks steps
        if nnz is not None:
            swap_pattern(module, nnz)
        optimizer.zero_grad()
        module(torch.randn(2, 4, 6, 6)).sum().backward()
        if nnz is None:
            optimizer.step()
    with pytest.raises(
        RuntimeError, match=r"has shape \(\d+, 4\), but .*weight_values.* \(10, 4\)"
    ):
        optimizer.step()
