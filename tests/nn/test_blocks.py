"""Layers in which `block_size` consecutive output channels share their positions."""

from __future__ import annotations

import pytest
import torch
from helpers.convolutions import image
from helpers.nn_cases import (
    ARGUMENTS,
    check_layer,
    check_results,
    gradients,
    layer,
    positions_of,
    results,
    same_bits,
    swap_pattern,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from dsr_kernels import SparseConv1d, SparseConv2d, SparseLinear
from dsr_kernels.backends.blocks import BLOCK_SIZES, block_size_of, expand
from dsr_kernels.topology import Topology

SIZES = BLOCK_SIZES[1:]
AWKWARD = {
    "groups, strides, dilations": {**ARGUMENTS, "groups": 3},
    "reflected": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "reflect", "stride": 2},
    "circular": {"kernel_size": (2, 3), "padding": 1, "padding_mode": "circular", "bias": False},
    "pointwise": {"kernel_size": 1, "stride": 2},
    "same": {"kernel_size": (2, 4), "padding": "same", "dilation": (3, 1)},
    "dead taps": {"kernel_size": 3, "padding": 9, "dilation": 9},
}


def conv_of(name: str, size: int, dtype: torch.dtype = torch.float32) -> SparseConv2d:
    arguments = {"in_channels": 6, **AWKWARD[name], "dtype": dtype}
    arguments["out_channels"] = 2 * size * arguments.get("groups", 1)
    return layer(**arguments, sparsity=0.6, block_size=size)


def single_weights(conv: SparseConv2d) -> SparseConv2d:
    """The same layer as one of single weights, and the order of its values in the blocks'."""
    twin = type(conv).from_dense(conv.dense_module(), mask=conv.to_dense().detach() != 0)
    assert twin.block_size == 1 and twin.nnz == conv.nnz
    return twin


# ---- what they compute ---------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", AWKWARD)
def test_convolutions_against_the_dense_twin(name: str, size: int) -> None:
    conv = conv_of(name, size)
    assert conv.weight_values.shape == (conv.blocks, size)
    assert conv.nnz == conv.blocks * size == conv.weight_values.numel()
    for n in (1, 17):
        check_layer(conv, image(n, 6, 7, 8))
    check_layer(conv, image(3, 6, 7, 8).contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("size", SIZES)
def test_other_kinds_of_layers(size: int) -> None:
    torch.manual_seed(0)
    options = {"sparsity": 0.7, "block_size": size}
    for module, x in (
        (SparseLinear(37, 3 * size, **options), (17, 37)),
        (SparseLinear(37, 3 * size, bias=False, **options), (2, 3, 37)),
        (SparseLinear(37, size, **options), (37,)),
        (SparseConv1d(4, 4 * size, 3, 2, 1, 2, groups=2, **options), (5, 4, 19)),
        (SparseConv1d(4, 2 * size, 3, padding="same", **options), (4, 19)),
        (SparseConv2d(4, 2 * size, 3, padding=1, **options), (4, 5, 6)),
    ):
        check_layer(module, torch.randn(x))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["groups, strides, dilations", "dead taps"])
def test_float64(name: str, size: int) -> None:
    check_layer(conv_of(name, size, torch.float64), image(9, 6, 7, 8, torch.float64))


@pytest.mark.parametrize("size", [2, 16])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_low_precision(low: torch.dtype, size: int) -> None:
    """Activations in 16 bits beside float32 weights, and the same under autocast."""
    conv, x = conv_of("groups, strides, dilations", size), image(17, 6, 7, 8)
    check_layer(conv, x.to(low))
    x.requires_grad_()
    with torch.autocast("cpu", low):
        y = conv(x)
    grad = torch.randn(y.shape).to(low)
    ours = [y.detach(), *gradients(conv, x, y, grad)]
    assert ours[1].dtype == torch.float32
    check_results(conv, x.detach().to(low), grad, [ours[0], ours[1].to(low), *ours[2:]])


@pytest.mark.parametrize("size", [2, 8, 32])
def test_patterns_from_empty_to_full(size: int) -> None:
    """With none, one and all of the blocks, and with block rows that have none."""
    conv = layer(3, 4 * size, 3, padding=1, block_size=size, dtype=torch.float64)
    x = image(16, 3, 5, 8, torch.float64)
    for blocks in (0, 1, 2, conv.numel // size - 1, conv.numel // size):
        swap_pattern(conv, blocks * size, seed=blocks)
        assert conv.blocks == blocks and conv.sparsity == 1 - blocks * size / conv.numel
        check_layer(conv, x)
    crow = torch.tensor([0, 0, 2, 2, 3], dtype=torch.int32)
    col = torch.tensor([0, 26, 13], dtype=torch.int32)
    conv.replace_topology(crow, col, torch.randn(3, size).double())
    check_layer(conv, x)
    assert conv.to_dense()[:size].count_nonzero() == 0
    assert conv.to_dense()[size : 2 * size, 0, 0, 0].count_nonzero() == size


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_layer_of_single_weights_computes_the_same_bits(data: st.DataObject) -> None:
    """Whatever the arguments: the kernels see the same non-zeros in the same order."""
    size, groups = data.draw(st.sampled_from(SIZES)), data.draw(st.sampled_from((1, 2)))
    conv = layer(
        groups * data.draw(st.integers(1, 4)),
        groups * size * data.draw(st.integers(1, 3)),
        data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        data.draw(st.integers(1, 2)),
        data.draw(st.integers(0, 2)),
        sparsity=data.draw(st.sampled_from((0.0, 0.5, 0.9))),
        groups=groups,
        block_size=size,
        seed=data.draw(st.integers(0, 9)),
    )
    x = image(data.draw(st.sampled_from((1, 2, 16))), conv.in_channels, 5, 8)
    twin = single_weights(conv)
    grad = torch.randn(conv(x).shape)
    ours, theirs = results(conv, x, grad), results(twin, x, grad)
    order = positions_of(conv).flatten().argsort()
    assert torch.equal(positions_of(conv).flatten()[order], positions_of(twin).flatten())
    ours[2] = ours[2].flatten()[order][:, None]
    assert len(ours) == 4
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [2, 4])
def test_derivatives_of_layers(size: int) -> None:
    conv = conv_of("groups, strides, dilations", size, torch.float64)
    x = image(2, 6, 7, 5, torch.float64).requires_grad_()

    def call(x, values, bias):
        named = {"weight_values": values, "bias": bias}
        return torch.func.functional_call(conv, named, (x,))

    values = conv.weight_values.detach().clone().requires_grad_()
    bias = conv.bias.detach().clone().requires_grad_()
    assert gradcheck(call, (x, values, bias), fast_mode=True)
    assert gradgradcheck(call, (x, values, bias), fast_mode=True)


def test_compiled_without_a_break() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(
        layer(4, 16, 3, padding=1, block_size=8),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(16 * 30, 6, sparsity=0.8, block_size=2),
    )
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x = image(3, 4, 5, 6)
    for nnz in (None, 80, 160):
        if nnz is not None:
            swap_pattern(net[0], nnz), swap_pattern(net[3], nnz)
        found = [
            torch.autograd.grad(call(x).square().sum(), net.parameters())
            for call in (compiled, net)
        ]
        assert found[0][0].shape == net[0].weight_values.shape
        torch.testing.assert_close(*found)
    torch._dynamo.reset()


# ---- patterns ------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(SIZES), st.integers(1, 4), st.integers(1, 9), st.data())
def test_expanded_patterns_are_the_csr_of_the_dense_weight(size, block_rows, length, data) -> None:
    """torch's own conversions say what BSR and CSR are."""
    blocks = data.draw(st.integers(0, block_rows * length))
    pattern = Topology.random((block_rows * size, length), blocks * size, block_size=size)
    values = torch.arange(1.0, pattern.nnz + 1).view(-1, size)
    indices = pattern.crow_indices, pattern.col_indices
    shape = pattern.weight_shape
    bsr = torch.sparse_bsr_tensor(*indices, values[..., None], shape, check_invariants=True)
    csr, rows = bsr.to_dense().to_sparse_csr(), expand(*indices, size)
    assert torch.equal(rows.crow_indices.long(), csr.crow_indices())
    assert torch.equal(rows.col_indices.long(), csr.col_indices())
    assert torch.equal(values.flatten()[rows.order], csr.values())
    assert pattern.validate().density == blocks / (block_rows * length)


@pytest.mark.parametrize(
    ("entries", "rows", "size"),
    [(33, 32, 1), (17, 32, 2), (2, 32, 32), (2, 64, 0), (11, 32, 0), (1, 32, 0), (12, 33, 0),
     (0, 4, 0), (4, 9, 0), (1, 0, 1)],
)  # fmt: skip
def test_the_block_size_is_read_off_crow_indices(entries: int, rows: int, size: int) -> None:
    assert block_size_of(torch.zeros(entries, dtype=torch.int32), rows) == size


@pytest.mark.parametrize("size", SIZES)
def test_random_patterns_are_uniform_and_whole(size: int) -> None:
    seen = torch.zeros(2 * size, 5)
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        conv = SparseLinear(5, 2 * size, nnz=3 * size, block_size=size, generator=generator)
        there = conv.to_dense().detach() != 0
        blocks = there.view(2, size, 5)
        assert torch.equal(blocks.any(1), blocks.all(1)) and there.sum() == 3 * size
        seen += there
    assert (seen / 200 - 0.3).abs().max() < 0.15


def test_random_kernels_of_blocks_are_whole() -> None:
    pattern = Topology.random_kernels((8, 5, 3, 3), 200, block_size=4)
    assert pattern.nnz == 180 and pattern.blocks == 45  # five kernels of 4 x 9 weights
    starts = pattern.validate().linear_positions().view(-1, 9)
    assert (starts == starts[:, :1] + torch.arange(9)).all() and (starts[:, 0] % 9 == 0).all()
    assert Topology.random_kernels((8, 5, 3, 3), 4, block_size=4).nnz == 36  # at least one


@pytest.mark.parametrize("size", [2, 8, 32])
def test_models_of_blocks_hold_what_they_say(size: int) -> None:
    conv = conv_of("reflected", size)
    assert f"block_size={size}, nnz={conv.nnz}, " in repr(conv)
    assert f"block_size={size}" in repr(conv.topology)
    held = conv.crow_indices.numel() - 1, conv.col_indices.numel()
    assert held == (conv.out_channels // size, conv.nnz // size)
    assert same_bits([conv.to_dense()], [conv.dense_module().weight])
