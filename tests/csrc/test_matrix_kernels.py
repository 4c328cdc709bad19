"""Blocks of 16 and 32 output channels in bfloat16 on matrix units, against torch.

The plain twin of the unit computes on any machine. AMX and AVX512-BF16 are tested where the
processor has them.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.formats import FORMATS, gradient_of
from helpers.fused_cases import check_problem, problem_of
from helpers.kernel_cases import CASES, ISAS, conv_and_input, kernels, used_lanes
from helpers.nn_cases import dense_results, layer, results, same_bits, swap_pattern
from torch import Tensor

from dsr_kernels import SparseConv2d, SparseLinear, explain
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns

# The twin, with vectors narrower than a tile's rows, and beside AVX-512's packing; and what
# processors have.
UNITS = [isa for isa in _C.available_isas() if isa != "avx2"]
OF_PROCESSORS = [isa for isa in UNITS if isa in ("avx512_bf16", "amx")]
EACH_IN_TURN = list(zip(CASES, itertools.cycle((16, 32)), strict=False))
# Pieces along the plane, of rows, and of two rows each; strides, groups and blocks of channels.
PATHS = ("7 wide", "65 wide", "32 wide", "16 wide", "groups", "blocks of channels", "stem", "1 x 1")
WIDE = {"32 wide": ((6, 9, 3, (5, 32), 3), {"padding": 1})}
LOW = torch.bfloat16


def rounded(conv: SparseConv2d) -> SparseConv2d:
    """With weights that bfloat16 holds, so that only sums and results are rounded."""
    with torch.no_grad():
        conv.weight_values.copy_(conv.weight_values.to(LOW))
    return conv


def problem(name: str, size: int) -> tuple[SparseConv2d, Tensor]:
    conv, x = conv_and_input(name, cases=CASES | WIDE, block_size=size)
    return rounded(conv), x.to(LOW)


def check(conv: SparseConv2d, x: Tensor, grad: Tensor | None = None) -> None:
    grad = torch.randn_like(conv(x)) if grad is None else grad
    exact_ones = dense_results(conv, x, grad, torch.float64, "cpu")
    names = ("y", "gx", "gvalues", "gbias")
    for name, ours, exact in zip(names, results(conv, x, grad), exact_ones, strict=False):
        rounding = 0.505 * torch.finfo(ours.dtype).eps * exact.abs()
        error = (ours.double() - exact).abs() - rounding
        if exact.numel():
            worst = error.max() / exact.abs().max().clamp(min=1)
            assert worst <= 1e-5, f"{name} of {conv}: off by {worst:.2g}"
    assert used_lanes() == {"matrix"}


@pytest.mark.parametrize(("name", "size"), EACH_IN_TURN)
@pytest.mark.parametrize("isa", UNITS)
def test_every_case(isa: str, name: str, size: int) -> None:
    conv, x = problem(name, size)
    with kernels(isa, "matrix"):
        check(conv, x)
        check(conv, x.contiguous(memory_format=torch.channels_last))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", UNITS)
def test_memory_formats(isa: str, name: str) -> None:
    of_x, of_grad = FORMATS[name]
    sizes = {(3, 16): {"padding": 1}, (9, 8): {"padding": 1}, (5, 32): {"padding": 1}}
    with kernels(isa, "matrix"):
        for size, arguments in sizes.items():
            conv = rounded(layer(18, 32, 3, sparsity=0.4, block_size=16, **arguments))
            x = of_x(torch.randn(5, 18, *size).to(LOW))
            check(conv, x, of_grad(gradient_of(conv, x).to(LOW)))


@pytest.mark.parametrize("isa", UNITS)
def test_patterns_from_empty_to_full(isa: str) -> None:
    """With a number of blocks below, at and above whatever a tile takes at a time."""
    conv = layer(5, 48, 3, padding=1, block_size=16)
    x = torch.randn(16, 5, 4, 8).to(LOW)
    with kernels(isa, "matrix"):
        for blocks in (0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 134, 135):
            swap_pattern(conv, blocks * 16, seed=blocks)
            conv.weight_values.data.mul_(0.1)
            check(rounded(conv), x)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 16, 33])
@pytest.mark.parametrize("size", [(4, 7), (3, 16), (2, 32), (1, 1)])
@pytest.mark.parametrize("isa", UNITS)
def test_every_batch(isa: str, size: tuple[int, int], batch: int) -> None:
    conv = rounded(layer(21, 32, 3, padding=1, sparsity=0.5, block_size=16))
    with kernels(isa, "matrix"):
        check(conv, torch.randn(batch, 21, *size).to(LOW))


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("isa", UNITS)
def test_the_same_bits_for_any_number_of_threads(isa: str, name: str) -> None:
    conv, x = problem(name, 16)
    grad, found = gradient_of(conv, x).to(LOW), []
    for threads in (1, 2, 3):
        with kernels(isa, "matrix", threads):
            found.append(results(conv, x, grad))
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("isa", UNITS)
def test_fused(isa: str, name: str) -> None:
    conv, x = problem(name, 16)
    with kernels(isa, "matrix"):
        check_problem(problem_of(conv, x.float()).in_bfloat16())
        check_problem(problem_of(conv, x.float(), residual=False).in_bfloat16())


@pytest.mark.parametrize("name", ["16 wide", "7 wide"])
@pytest.mark.parametrize("isa", UNITS)
def test_every_combination_of_fused_parts(isa: str, name: str) -> None:
    conv, x = problem(name, 16)
    with kernels(isa, "matrix"):
        for affine, relu, residual, statistics in itertools.product([False, True], repeat=4):
            parts = {"affine": affine, "relu": relu, "residual": residual, "statistics": statistics}
            check_problem(problem_of(conv, x.float(), **parts).in_bfloat16())


@pytest.mark.parametrize("size", [(22, 32), (20, 16), (44, 8), (9, 32), (16, 14)])
@pytest.mark.parametrize("isa", UNITS)
def test_outputs_too_large_for_the_caches(isa: str, size: tuple[int, int]) -> None:
    """From 4 MB on whole lines go past the caches."""
    conv = rounded(layer(32, 32, 3, padding=1, sparsity=0.8, block_size=16))
    x = torch.randn(-(-(4 << 20) // (64 * size[0] * size[1])), 32, *size)
    with kernels(isa, "matrix", threads=2):
        check(conv, x.to(LOW))
        check_problem(problem_of(conv, x).in_bfloat16())


@pytest.mark.skipif(not OF_PROCESSORS, reason="this processor has neither AVX512-BF16 nor AMX")
@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("isa", OF_PROCESSORS)
def test_a_unit_and_its_twin_differ_by_rounding_alone(isa: str, name: str) -> None:
    conv, x = problem(name, 16)
    grad, found = gradient_of(conv, x).to(LOW), []
    for each in ("avx512", isa):
        with kernels(each, "matrix"):
            found.append(results(conv, x, grad))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("isa", UNITS)
def test_what_is_not_finite_reaches_only_the_outputs_that_read_it(isa: str, value: float) -> None:
    conv = layer(2, 32, 3, padding=1, block_size=16, nnz=16)
    crow = torch.tensor([0, 1, 1], dtype=torch.int32)
    conv.replace_topology(crow, torch.tensor([4], dtype=torch.int32), torch.ones(16, 1).view(1, 16))
    x = torch.randn(3, 2, 4, 8)
    x[2, 0, 1, 2], x[1, 1] = value, value
    with kernels(isa, "matrix"), torch.no_grad():
        y = conv(x.to(LOW))
    broken = (~y.isfinite()).nonzero()
    assert {tuple(i) for i in broken.tolist()} == {(2, o, 1, 2) for o in range(16)}


@pytest.mark.parametrize("isa", UNITS)
def test_an_infinite_input_stays_out_of_the_gradients_of_the_channel_before(isa: str) -> None:
    """Its plane follows at once where rows fill whole lines, and pieces reach beyond the last."""
    conv = layer(300, 16, 3, sparsity=0.0, block_size=16, bias=False)  # so many: a unit is an image
    x = torch.ones(1, 300, 31, 32).to(LOW)
    x[0, 1, 0, 0] = torch.inf
    with kernels(isa, "matrix"):
        _, _, gvalues = results(conv, x, torch.ones(1, 16, 29, 30).to(LOW))
        images = {plan.describe()["images"] for plan in patterns.plans()}
    of_channel = conv.col_indices // 9
    assert 1 in images
    assert (gvalues[of_channel != 1] == 29 * 30).all()
    assert not gvalues[of_channel == 1].isfinite().all()


@pytest.mark.skipif(not OF_PROCESSORS, reason="this processor has neither AVX512-BF16 nor AMX")
@pytest.mark.parametrize(
    ("size", "stride", "dtype", "chosen"),
    [
        (16, 1, LOW, True),
        (32, 1, LOW, True),
        (8, 1, LOW, False),
        (16, 2, LOW, False),
        (16, 1, torch.float32, False),
    ],
)
@pytest.mark.parametrize("isa", OF_PROCESSORS)
def test_when_a_unit_is_chosen(
    isa: str, size: int, stride: int, dtype: torch.dtype, chosen: bool
) -> None:
    conv = layer(8, 32, 3, padding=1, stride=stride, sparsity=0.5, block_size=size)
    x = torch.randn(4, 8, 16, 16).requires_grad_()
    with kernels(isa), torch.autocast("cpu", LOW, enabled=dtype == LOW):
        conv(x).sum().backward()
        assert (used_lanes() == {"matrix"}) == ("matrix" in used_lanes()) == chosen
    with kernels("avx512"), torch.autocast("cpu", LOW):
        conv(x)
        assert "matrix" not in used_lanes()


@pytest.mark.skipif(not OF_PROCESSORS, reason="this processor has neither AVX512-BF16 nor AMX")
@pytest.mark.parametrize("isa", OF_PROCESSORS)
def test_explain_says_of_both_passes_what_runs(isa: str) -> None:
    conv = layer(8, 32, 3, padding=1, sparsity=0.5, block_size=16)
    with kernels(isa), torch.autocast("cpu", LOW):
        told = explain(torch.nn.Sequential(conv), (4, 8, 16, 16)).rows
    assert [(row.operation, row.lanes) for row in told] == [
        ("forward", "matrix"),
        ("grad_input", "matrix"),
    ]
    unit = {"amx": "AMX", "avx512_bf16": "AVX512-BF16"}[isa]
    assert {row.reason for row in told} == {f"bfloat16: {unit} takes blocks of 16"}


@pytest.mark.skipif("amx" not in UNITS, reason="this processor has no AMX")
def test_units_leave_the_tiles_to_others() -> None:
    """torch's own products in bfloat16 use them, too, by turns with ours."""
    linear = SparseLinear(64, 64, sparsity=0.5, block_size=16)
    x = torch.randn(64, 64)
    with kernels("amx"), torch.autocast("cpu", LOW), torch.no_grad():
        dense = torch.nn.Linear(64, 64)
        first = linear(x), dense(x)
        for _ in range(3):
            again = linear(x), dense(x)
            assert all(map(torch.equal, first, again))
        assert {plan.describe()["lanes"] for plan in patterns.plans()} == {"matrix"}


@pytest.mark.parametrize("isa", ISAS)
def test_other_blocks_and_types_are_refused(isa: str) -> None:
    message = "lanes 'matrix': need float32 and blocks of 16 output channels or of a multiple, got"
    for size, dtype in ((8, torch.float32), (16, torch.float64)):
        conv = layer(5, 32, 3, block_size=size, dtype=dtype)
        with kernels(isa, "matrix"), pytest.raises(ValueError, match=message):
            conv(torch.randn(2, 5, 6, 6, dtype=dtype))
