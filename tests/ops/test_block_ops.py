"""The ops on weights of blocks, as torch and its tools see them."""

from __future__ import annotations

import pytest
import torch
from helpers.fused_cases import problem_of
from helpers.nn_cases import layer
from helpers.op_cases import OPS, check_against_the_reference, check_derivatives, check_opcheck
from helpers.op_cases import problem as plain_problem
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.flop_counter import FlopCounterMode

from dsr_kernels import SparseLinear
from dsr_kernels.nn import functional
from dsr_kernels.ops import reference


@pytest.mark.parametrize("last", [False, True])
def test_ops_agree_with_the_reference(last: bool) -> None:
    check_against_the_reference(last, block_size=2)


@pytest.mark.parametrize(
    "dtype, last", [(torch.float32, False), (torch.float64, True), (torch.bfloat16, True)]
)
def test_opcheck(dtype: torch.dtype, last: bool) -> None:
    check_opcheck(dtype, last, block_size=2)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatcher"])
def test_derivatives_to_second_order(direct: bool) -> None:
    check_derivatives(direct, block_size=2)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_opcheck_of_the_fused_ops(dtype: torch.dtype, last: bool) -> None:
    weights = torch.float32 if dtype == torch.bfloat16 else dtype
    conv = layer(6, 8, 3, padding=1, groups=2, block_size=4, dtype=weights)
    x = torch.randn(2, 6, 5, 4, dtype=weights)
    p = problem_of(conv, x.contiguous(memory_format=torch.channels_last) if last else x)
    p = p.in_bfloat16() if dtype == torch.bfloat16 else p
    weight = p.values, *p.pattern
    leaves = p.leaves()
    args = (leaves.x, *leaves.affine, True, leaves.values, leaves.bias, *p.pattern)
    torch.library.opcheck(OPS.sparse_conv2d_fused, (*args, leaves.residual, True, *p.shape))
    y = p.run().y
    of_y = y, *[p.values.new_ones(8)] * 3
    args = (torch.randn_like(y), *of_y, *weight, p.x, *p.affine, True, torch.randn_like(p.x))
    torch.library.opcheck(OPS.sparse_conv2d_fused_grad_input, (*args, *p.shape))
    args = (p.x, *p.affine, True, torch.randn_like(y), *of_y, *p.pattern, *p.shape)
    torch.library.opcheck(OPS.sparse_conv2d_fused_grad_weight, (*args, weights))
    ones = p.values.new_ones(8)
    args = (p.x, *p.affine, True, *weight, ones, ones, y, True, *p.shape)
    torch.library.opcheck(OPS.sparse_conv2d_folded, args)


def test_derivatives_of_the_fused_op() -> None:
    conv = layer(4, 8, 3, padding=1, groups=2, block_size=4, dtype=torch.float64)
    p = problem_of(conv, torch.randn(2, 4, 4, 3, dtype=torch.float64))

    def function(*variables: Tensor) -> tuple[Tensor, ...]:
        left = iter(variables)
        again = p.map(lambda _: next(left))
        return tuple(t for t in again.run() if t is not None)

    variables = [v.detach().requires_grad_() for v in p.variables()]
    assert [tuple(v.shape) for v in variables].count((conv.blocks, 4)) == 1
    assert gradcheck(function, variables)
    assert gradgradcheck(function, variables, fast_mode=True)


@pytest.mark.parametrize("shape", [(10, 2), (20,)])
def test_values_come_in_blocks_or_flat(shape: tuple[int, ...]) -> None:
    x, values, bias, crow, col, geometry = plain_problem(block_size=2)
    shaped = values.detach().view(shape).requires_grad_()
    y = functional.sparse_conv2d(x, shaped, bias, crow, col, *geometry)
    expected = reference.sparse_conv2d(x, values, bias, crow, col, *geometry)
    torch.testing.assert_close(y, expected)
    (found,) = torch.autograd.grad(y.square().sum(), shaped)
    (wanted,) = torch.autograd.grad(expected.square().sum(), values)
    assert found.shape == shape
    torch.testing.assert_close(found.flatten(), wanted)


@pytest.mark.parametrize("shape", [(20, 1), (5, 4), (10,), (9, 2), (2, 10), (10, 2, 1)])
def test_values_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    x, _, bias, crow, col, geometry = plain_problem(block_size=2)
    message = r"expected 2 values per column index, of shape \(10, 2\) or \(20,\), got values of"
    with pytest.raises(ValueError, match=message):
        functional.sparse_conv2d(x, x.new_zeros(shape), bias, crow, col, *geometry)


@pytest.mark.parametrize("entries", [1, 2, 4, 6, 7])
def test_crow_indices_of_no_block_size_are_refused(entries: int) -> None:
    x, values, bias, _, col, geometry = plain_problem()
    crow = torch.zeros(entries, dtype=torch.int32)
    message = r"crow_indices of shape \(5,\), or of blocks of \(2, 4, 8, 16, 32\) rows"
    if entries == 2:  # one block row of 4 across the two groups
        message = "block_size|expected 4 values per column index"
    with pytest.raises(ValueError, match=message):
        functional.sparse_conv2d(x, values, bias, crow, col, *geometry)


def test_blocks_across_two_groups_are_refused() -> None:
    x, values, bias, _, col, geometry = plain_problem(requires_grad=False)
    crow, col = torch.tensor([0, 5], dtype=torch.int32), col[:5].sort().values.unique()
    crow[1] = len(col)
    values = torch.randn(len(col), 4, dtype=x.dtype)
    with pytest.raises(ValueError, match="divisor of the 2 output channels of a group, got 4"):
        functional.sparse_conv2d(x, values, bias, crow, col, *geometry)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_flops_count_every_weight_of_a_block(size: int) -> None:
    linear = SparseLinear(20, 16, nnz=64, block_size=size)
    counter = FlopCounterMode(display=False)
    with counter:
        linear(torch.randn(3, 20)).sum().backward()
    forward_and_weights = 2 * 2 * 64 * 3
    assert counter.get_total_flops() >= forward_and_weights
    assert counter.get_total_flops() == counts()


def counts() -> int:
    """Of the same layer of single weights."""
    linear = SparseLinear(20, 16, nnz=64)
    counter = FlopCounterMode(display=False)
    with counter:
        linear(torch.randn(3, 20)).sum().backward()
    return counter.get_total_flops()
