"""Linear layers have calls of their own: any number of dimensions, strides and derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dsr_kernels import SparseLinear
from dsr_kernels.backends.patterns import patterns


def linear(bias: bool = True, dtype: torch.dtype = torch.float64) -> SparseLinear:
    generator = torch.Generator().manual_seed(0)
    made = SparseLinear(7, 5, bias, sparsity=0.6, dtype=dtype, generator=generator)
    return made


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    x = torch.randn(4, 3, 7, dtype=torch.float64)
    return {
        "a vector": x[0, 0],
        "a batch": x[0],
        "a sequence": x,
        "four": x[None],
        "turned": x.transpose(0, 1),
        "strided": torch.randn(4, 14, dtype=torch.float64)[:, ::2],
        "expanded": x[0, :1].expand(6, 7),
        "of one": x[:1, :1],
        "empty": x[:0],
        "a view": x.view(12, 7)[2:],
    }


@pytest.mark.parametrize("name", list(inputs()))
@pytest.mark.parametrize("bias", [True, False], ids=["bias", ""])
def test_it_is_what_torch_computes(name: str, bias: bool) -> None:
    x, sparse = inputs()[name], linear(bias)
    for _ in range(3):  # checked, prepared, looked up
        leaf, twin = x.detach().requires_grad_(), x.detach().requires_grad_()
        y, weight = sparse(leaf), sparse.to_dense().detach().requires_grad_()
        dense_bias = sparse.bias.detach().requires_grad_() if bias else None
        expected = F.linear(twin, weight, dense_bias)
        torch.testing.assert_close(y, expected)
        assert y.is_contiguous()
        g = torch.randn_like(y)
        parameters = list(sparse.parameters())
        found = torch.autograd.grad(y, [leaf, *parameters], g)
        dense = [twin, weight, *([dense_bias] if bias else [])]
        gx, gweight, *gbias = torch.autograd.grad(expected, dense, g)
        torch.testing.assert_close(found[0], gx)
        torch.testing.assert_close(found[1].flatten(), gweight[sparse.to_dense() != 0])
        torch.testing.assert_close(list(found[2:]), gbias)
        alone = torch.autograd.grad(sparse(x), parameters, g)
        assert all(map(torch.equal, alone, found[1:]))


def test_gradients_of_gradients() -> None:
    sparse, x = linear(), inputs()["a sequence"].requires_grad_()
    sparse(x).sum().backward()  # prepared
    weight, pattern = list(sparse.parameters()), (sparse.crow_indices, sparse.col_indices)
    from dsr_kernels.nn.functional import sparse_linear

    def f(x: Tensor, values: Tensor, bias: Tensor) -> Tensor:
        return sparse_linear(x, values, bias, *pattern, (5, 7))

    assert torch.autograd.gradcheck(f, (x, *weight))
    assert torch.autograd.gradgradcheck(f, (x, *weight))


def test_a_result_may_be_written_to_in_place() -> None:
    sparse, x = linear(), inputs()["a sequence"].requires_grad_()
    for _ in range(2):
        y = F.relu_(sparse(x))
        (gx,) = torch.autograd.grad(y.sum(), x)
        twin = x.detach().requires_grad_()
        dense = F.relu(F.linear(twin, sparse.to_dense(), sparse.bias))
        torch.testing.assert_close(gx, torch.autograd.grad(dense.sum(), twin)[0])


@pytest.mark.parametrize("frozen", ["input", "values", "both"])
def test_what_is_frozen_has_no_gradient(frozen: str) -> None:
    sparse, x = linear(), inputs()["a batch"]
    sparse.weight_values.requires_grad_(frozen == "input")
    x.requires_grad_(frozen == "values")
    for _ in range(2):
        sparse.zero_grad()
        sparse(x).sum().backward()
        assert (sparse.weight_values.grad is not None) == (frozen == "input")
        assert sparse.bias.grad is not None
    if frozen == "values":
        torch.testing.assert_close(x.grad / 2, sparse.to_dense().sum(0).expand(3, 7))


def test_a_graph_of_an_older_weight_is_refused() -> None:
    sparse, x = linear(), inputs()["a batch"].requires_grad_()
    for _ in range(2):
        y = sparse(x)
        y.sum().backward()
    y = sparse(x)
    other = linear()
    sparse.replace_topology(other.crow_indices, other.col_indices, other.weight_values)
    with pytest.raises(RuntimeError, match="run the forward again"):
        y.sum().backward()


def test_wrong_arguments_are_refused_after_right_ones() -> None:
    sparse, x = linear(), inputs()["a batch"]
    for _ in range(2):
        sparse(x)
    for wrong in (x[:, :3], x.float(), x.int(), torch.tensor(1.0)):
        with pytest.raises((ValueError, TypeError), match=r"SparseLinear|dtype"):
            sparse(wrong)
    sparse.col_indices.data = sparse.col_indices.long()
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        sparse(x)


def test_calls_are_kept_for_their_own_sizes() -> None:
    patterns.clear()
    sparse = linear(dtype=torch.float32)
    for size in ((4, 7), (2, 2, 7), (4, 7), (2, 2, 7)):
        assert sparse(torch.randn(size)).shape == (*size[:-1], 5)
    found = patterns.known(sparse.crow_indices, sparse.col_indices)
    sizes = [key[-1] for key in found.calls if key[0] == "linear"]
    assert sorted(map(tuple, sizes)) == [(2, 2, 7), (4, 7)]


def test_in_low_precision() -> None:
    sparse = linear(dtype=torch.float32)
    x = torch.randn(6, 7)
    for dtype in (torch.bfloat16, torch.float16):
        for _ in range(2):
            leaf = x.to(dtype).requires_grad_()
            y = sparse(leaf)
            assert y.dtype == dtype
            y.float().sum().backward()
            assert leaf.grad.dtype == dtype
            torch.testing.assert_close(y.float(), sparse(leaf.float()), rtol=1e-2, atol=1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        assert sparse(x).dtype == torch.bfloat16
