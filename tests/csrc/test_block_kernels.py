"""Layers of blocks in every variant of the kernels: instruction sets x lanes, against torch."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.formats import FORMAT_CASES, FORMATS, gradient_of, variants
from helpers.fused_cases import check_problem, problem_of
from helpers.kernel_cases import CASES, ISAS, applies, conv_and_input, in_blocks, kernels
from helpers.nn_cases import check_layer, layer, results, same_bits, swap_pattern
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.backends.blocks import BLOCK_SIZES
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns

SIZES = BLOCK_SIZES[1:]
EACH_IN_TURN = list(zip(CASES, itertools.cycle(SIZES), strict=False))
# Every path of the inner loops once: whole vectors, shares of one, strides, groups, blocks of
# source channels, and no kernel column beside the first.
PATHS = (
    "16 wide",
    "7 wide",
    "56 wide",
    "16 wide, stride 2",
    "groups",
    "blocks and stride",
    "more blocks of channels",
    "1 x 1",
)


def problem(name: str, size: int, dtype: torch.dtype = torch.float32) -> tuple:
    return conv_and_input(name, dtype, block_size=size)


@pytest.mark.parametrize(("name", "size"), EACH_IN_TURN)
@variants
def test_every_case(isa: str, lanes: str, name: str, size: int) -> None:
    if applies(name, isa, lanes):
        with kernels(isa, lanes):
            check_layer(*problem(name, size))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PATHS)
@variants
def test_every_block_size(isa: str, lanes: str, name: str, size: int) -> None:
    conv, x = problem(name, size)
    if applies(name, isa, lanes):
        with kernels(isa, lanes):
            check_layer(conv, x)
            check_layer(conv, x[:9].contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("lanes", ["plane", "batch"])
@pytest.mark.parametrize("isa", ISAS)
def test_float64(isa: str, lanes: str, name: str, size: int) -> None:
    with kernels(isa, lanes):
        check_layer(*problem(name, size, torch.float64))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PATHS)
@variants
def test_bfloat16(isa: str, lanes: str, name: str, size: int) -> None:
    conv, x = problem(name, size)
    if applies(name, isa, lanes):
        with kernels(isa, lanes):
            check_layer(conv, x.bfloat16())


@pytest.mark.parametrize("size", [2, 16])
@pytest.mark.parametrize("name", FORMATS)
@variants
def test_memory_formats(isa: str, lanes: str, name: str, size: int) -> None:
    of_x, of_grad = FORMATS[name]
    with kernels(isa, lanes):
        for case in FORMAT_CASES:
            (c, o, kernel, image, n), arguments = in_blocks(case, size)
            conv = layer(c, o, kernel, sparsity=0.4, **arguments)
            x = of_x(torch.randn(n, c, *image))
            check_layer(conv, x, of_grad(gradient_of(conv, x)))


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 9, 15, 16, 17, 31, 33, 100])
@pytest.mark.parametrize("size", [8, 16])
@variants
def test_every_batch_of_one_plan(isa: str, lanes: str, size: int, batch: int) -> None:
    conv = layer(5, 2 * size, 3, padding=1, sparsity=0.5, block_size=size)
    with kernels(isa, lanes):
        check_layer(conv, torch.randn(batch, 5, 4, 7))


@pytest.mark.parametrize("size", SIZES)
@variants
def test_patterns_from_empty_to_full(isa: str, lanes: str, size: int) -> None:
    """With a number of blocks below, at and above whatever a kernel takes at a time."""
    conv = layer(5, 3 * size, 3, padding=1, block_size=size)
    x = torch.randn(16, 5, 4, 8)
    with kernels(isa, lanes):
        for blocks in (0, 1, 2, 15, 16, 17, 134, 135):
            swap_pattern(conv, blocks * size, seed=blocks)
            conv.weight_values.data.mul_(0.1)
            check_layer(conv, x)
        crow = torch.tensor([0, 45, 45, 46], dtype=torch.int32)  # full, empty, a single block
        col = torch.tensor([*range(45), 22], dtype=torch.int32)
        conv.replace_topology(crow, col, torch.randn(46, size) * 0.1)
        check_layer(conv, x)


@pytest.mark.parametrize("name", PATHS)
@variants
def test_the_same_bits_for_any_number_of_threads(isa: str, lanes: str, name: str) -> None:
    conv, x = problem(name, 8)
    if not applies(name, isa, lanes):
        return
    grad, found = gradient_of(conv, x), []
    for threads in (1, 2, 3):
        with kernels(isa, lanes, threads):
            found.append(results(conv, x, grad))
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PATHS)
@variants
def test_fused(isa: str, lanes: str, name: str, size: int) -> None:
    conv, x = problem(name, size)
    if applies(name, isa, lanes):
        with kernels(isa, lanes):
            check_problem(problem_of(conv, x))
            check_problem(problem_of(conv, x, residual=False).in_bfloat16())


@pytest.mark.parametrize("size", [4, 16])
@pytest.mark.parametrize("name", ["16 wide", "7 wide", "1 x 1"])
@variants
def test_every_combination_of_fused_parts(isa: str, lanes: str, name: str, size: int) -> None:
    conv, x = problem(name, size)
    with kernels(isa, lanes):
        for affine, relu, residual, statistics in itertools.product([False, True], repeat=4):
            parts = {"affine": affine, "relu": relu, "residual": residual, "statistics": statistics}
            check_problem(problem_of(conv, x, **parts))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@variants
def test_what_is_not_finite_goes_where_it_belongs(isa: str, lanes: str, value: float) -> None:
    """To the outputs of blocks that read it, and to no other row of a block's neighbours."""
    conv = layer(2, 16, 3, padding=1, block_size=8, nnz=8)
    crow = torch.tensor([0, 1, 1], dtype=torch.int32)
    conv.replace_topology(crow, torch.tensor([4], dtype=torch.int32), torch.ones(8, 1).view(1, 8))
    x = torch.randn(16, 2, 4, 8)
    x[3, 0, 1, 2], x[5, 1] = value, value
    with kernels(isa, lanes), torch.no_grad():
        y = conv(x)
    broken = (~y.isfinite()).nonzero()
    assert {tuple(i) for i in broken.tolist()} == {(3, o, 1, 2) for o in range(8)}


@pytest.mark.skipif("avx512" not in ISAS, reason="lanes are masked in AVX-512 alone")
@pytest.mark.parametrize("column", [0, 1, 2])
def test_an_infinite_weight_stays_within_its_columns(column: int) -> None:
    """Of the gradient of the input: lanes that a turn wraps around are not multiplied in."""
    conv = layer(40, 8, 3, padding=1, sparsity=0.2, block_size=8)  # enough to go in groups
    where = int((conv.col_indices % 9 == 3 + column).nonzero()[0])
    with torch.no_grad():
        conv.weight_values[where] = torch.inf
    x = torch.randn(16, 40, 4, 16, requires_grad=True)
    with kernels("avx512", "row"):
        conv(x).backward(torch.ones(16, 8, 4, 16))
        assert 4 in {p.describe()["block_rows"] for p in patterns.plans()}
    reached = torch.zeros(4, 16, dtype=torch.bool)
    reached[:, max(column - 1, 0) : 16 + min(column - 1, 0)] = True
    channel = int(conv.col_indices[where]) // 9
    broken = ~x.grad.isfinite()
    assert (broken[:, channel] == reached).all()
    assert not broken[:, :channel].any() and not broken[:, channel + 1 :].any()


@pytest.mark.skipif("avx512" not in ISAS, reason="no other instruction set has such stores")
@pytest.mark.parametrize("height", [10, 22, 26])
@pytest.mark.parametrize("size", [1, 8])
def test_large_outputs_of_narrow_rows(size: int, height: int) -> None:
    """Tiles that begin within a vector of an output so large that vectors go past the caches."""
    conv = layer(2, 64, 3, padding=1, sparsity=0.5, block_size=size)
    with kernels("avx512", "row"):
        check_layer(conv, torch.randn(256, 2, height, 8))


def arguments(conv: SparseConv2d, crow: Tensor, col: Tensor, **changes) -> dict:
    geometry = {"height": 6, "width": 5, "kernel": (3, 3), "stride": (1, 1), "out_size": (6, 5)}
    pattern = {"crow": crow.data_ptr(), "col": col.data_ptr(), "blocks": col.numel()}
    sizes = {"out_channels": conv.out_channels, "in_channels": conv.in_channels}
    rest = {"padding": (1, 1), "dilation": (1, 1), "groups": conv.groups, "dtype": "float32"}
    return {**sizes, **geometry, **rest, **pattern, "block_size": conv.block_size, **changes}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 16}, "divisor of the 8 output channels of a group, got 16"),
        ({"block_size": 0}, "block_size: .* got 0"),
        ({"block_size": -4}, "block_size: .* got -4"),
        ({"block_size": 3}, "divisor of the 8 output channels of a group, got 3"),
        ({"blocks": 3}, "end at the number of blocks = 3"),
        ({"bad": "columns"}, r"col_indices of row 1 must ascend strictly within \[0, 18\)"),
        ({"bad": "rows"}, "crow_indices decreases at row 1"),
    ],
)
def test_the_native_core_refuses_what_are_no_blocks(change, message, transposed: bool) -> None:
    conv = layer(4, 16, 3, groups=2, block_size=4, nnz=16)
    crow = torch.tensor([0, 1, 3, 4, 4], dtype=torch.int32)
    col = torch.tensor([5, 0, 17, 3], dtype=torch.int32)
    _C.ConvPlan(**arguments(conv, crow, col, transposed=transposed))
    bad = change.get("bad")
    if bad == "columns":
        col[2] = 18
    elif bad == "rows":
        crow[2] = 0
    rest = {key: value for key, value in change.items() if key != "bad"}
    with pytest.raises(ValueError, match=message):
        _C.ConvPlan(**arguments(conv, crow, col, transposed=transposed, **rest))
