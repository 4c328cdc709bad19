"""Layers of blocks by the GPU's kernels, which see each row of a block as a row of its own."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from helpers import cuda_fused_cases
from helpers.cuda_conv_cases import (
    DTYPES,
    SHAPES,
    AtRandom,
    conv_and_input,
    direct,
    dtypes,
    floats,
    gpu_kernels,
)
from helpers.cuda_device import DEVICE
from helpers.formats import FORMATS, gradient_of
from helpers.kernel_cases import in_blocks
from helpers.nn_cases import check_layer, results, same_bits, swap_pattern
from helpers.op_cases import check_against_the_reference, check_derivatives, check_opcheck

from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.backends.blocks import BLOCK_SIZES, expand

SIZES = BLOCK_SIZES[1:]
# Those of many outputs take the emulator long, and are about outputs alone.
FEW_OUTPUTS = [name for name, ((_, outputs, *_), _) in SHAPES.items() if outputs <= 200]
# By slabs and without; strides of several classes, groups, pointwise, dead taps.
PATHS = ("16 wide", "7 wide", "stride (3, 2), 2 x 1", "groups", "1 x 1", "depthwise, stride 2")


def problem(name: str, size: int, dtype: torch.dtype = torch.float32) -> tuple:
    return conv_and_input(*in_blocks(SHAPES[name], size), dtype)


@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    list(zip(FEW_OUTPUTS, cycle(SIZES), cycle(DTYPES), strict=False)),
    ids=str,
)
def test_every_shape(name: str, size: int, dtype: torch.dtype) -> None:
    with gpu_kernels():
        check_layer(*problem(name, size, dtype))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PATHS)
def test_every_block_size(name: str, size: int) -> None:
    conv, x = problem(name, size)
    with gpu_kernels():
        check_layer(conv, x[:9])
    with gpu_kernels(direct, direct):
        check_layer(conv, x[:5])


@pytest.mark.parametrize("name", ["channels_last", "sliced", "expanded gradient"])
@floats
def test_memory_formats(name: str, dtype: torch.dtype) -> None:
    of_x, of_grad = FORMATS[name]
    conv, x = problem("16 wide, stride 2", 4, dtype)
    with gpu_kernels():
        check_layer(conv, of_x(x), of_grad(gradient_of(conv, x)))


@dtypes
def test_patterns_from_empty_to_full(dtype: torch.dtype) -> None:
    sizes = (5, 16, 3, (6, 7), 5)
    conv, x = conv_and_input(sizes, {"padding": 1, "block_size": 8}, dtype)
    with gpu_kernels():
        for blocks in (0, 1, 2, 89, 90):
            swap_pattern(conv, 8 * blocks, seed=blocks)
            conv.weight_values.data.mul_(0.1)
            check_layer(conv, x)
        crow = torch.tensor([0, 0, 2], dtype=torch.int32)
        col = torch.tensor([0, 44], dtype=torch.int32)
        values = torch.randn(2, 8, dtype=conv.weight_values.dtype)
        conv.replace_topology(*(t.to(DEVICE) for t in (crow, col, values)))
        check_layer(conv, x)


@pytest.mark.parametrize("seed", range(12))
def test_random_tilings(seed: int) -> None:
    choice = AtRandom(seed)
    conv, x = problem(PATHS[seed % len(PATHS)], SIZES[seed % len(SIZES)])
    with gpu_kernels(choice.gather, choice.grad_weight):
        check_layer(conv, x[:7])


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("path", [None, direct])
def test_taps_that_meet_only_padding(size: int, path) -> None:
    """Their gradient is 0, of every weight of the block, though infinity is elsewhere."""
    sizes = (5, 2 * size, 3, (3, 3), 5)
    arguments = {"padding": 9, "dilation": 9, "sparsity": 0.4, "block_size": size}
    conv, x = conv_and_input(sizes, arguments)
    with gpu_kernels(path, path):
        check_layer(conv, x)
        y = conv(x)
        found = torch.autograd.grad(y, conv.weight_values, torch.full_like(y, torch.inf))[0]
    dead = conv.col_indices % 9 != 4
    assert found.shape == (conv.blocks, size) and 0 < dead.sum() < conv.blocks
    assert (found[dead] == 0).all() and not found[~dead].isfinite().any()


def single_weights(conv: SparseConv2d) -> tuple[SparseConv2d, torch.Tensor]:
    """The same layer of single weights, and where in the flat blocks each of its values is."""
    rows = expand(conv.crow_indices, conv.col_indices, conv.block_size)
    twin = conv_twin(conv)
    values = conv.weight_values.detach().flatten()[rows.order]
    twin.replace_topology(rows.crow_indices, rows.col_indices, values)
    return twin, rows.order


def conv_twin(conv: SparseConv2d) -> SparseConv2d:
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    twin = SparseConv2d(conv.in_channels, conv.out_channels, conv.kernel_size, *geometry)
    twin.bias.data.copy_(conv.bias.detach())
    return twin.to(DEVICE)


@pytest.mark.parametrize("size", SIZES)
def test_the_bits_are_those_of_single_weights(size: int) -> None:
    conv, x = problem("16 wide, stride 2", size)
    twin, order = single_weights(conv)
    grad = gradient_of(conv, x)
    with gpu_kernels():
        ours, theirs = results(conv, x, grad), results(twin, x, grad)
    ours[2] = ours[2].flatten()[order][:, None]
    assert same_bits(ours, theirs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["16 wide", "7 wide", "groups", "stride 3", "1 x 1"])
@floats
def test_fused(name: str, size: int, dtype: torch.dtype) -> None:
    conv, x = problem(name, size, dtype)
    p = cuda_fused_cases.problem(conv, x[:9])
    with gpu_kernels():
        found = cuda_fused_cases.results(p)
    cuda_fused_cases.check(p, found)


@pytest.mark.parametrize("last", [False, True])
def test_ops_agree_with_the_reference(last: bool) -> None:
    with gpu_kernels():
        check_against_the_reference(last, DEVICE, block_size=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    with gpu_kernels():
        check_opcheck(dtype, True, DEVICE, block_size=2)


def test_gradients_of_gradients() -> None:
    with gpu_kernels():
        check_derivatives(True, DEVICE, block_size=2)


@pytest.mark.parametrize("shape", [(3,), (129, 37), (5, 7, 130)])
@pytest.mark.parametrize("size", [2, 32])
def test_linear(shape: tuple[int, ...], size: int) -> None:
    torch.manual_seed(0)
    linear = SparseLinear(shape[-1], 2 * size, sparsity=0.6, block_size=size).to(DEVICE)
    with gpu_kernels():
        check_layer(linear, torch.randn(shape).to(DEVICE))
