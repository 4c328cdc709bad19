"""Dense twins: from_dense, dense_module and to_dense."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers.nn_cases import ARGUMENTS
from torch import nn
from torch.nn.utils import prune

from dsr_kernels import SparseConv2d, SparseLinear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("keep", ["magnitude", "random"])
@pytest.mark.parametrize(
    "arguments",
    [
        ARGUMENTS,
        {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 4), "padding": "same"},
        {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": "valid", "stride": 2},
        {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "padding": 1, "groups": 4},
        {
            "in_channels": 2,
            "out_channels": 6,
            "kernel_size": (3, 5),
            "padding": (1, 2),
            "padding_mode": "circular",
        },
    ],
)
def test_from_dense_carries_over_every_argument(arguments, keep, bias):
    conv = nn.Conv2d(**arguments, bias=bias, dtype=torch.float64)
    sparse = SparseConv2d.from_dense(conv, 0.5, keep=keep)
    assert sparse.nnz == conv.weight.numel() // 2
    for name in ("stride", "padding", "dilation", "groups", "padding_mode", "kernel_size"):
        assert getattr(sparse, name) == getattr(conv, name), name
    assert (sparse.bias is not None) == bias
    kept = sparse.to_dense() != 0
    assert torch.equal(sparse.to_dense(), conv.weight * kept)
    x = torch.randn(2, conv.in_channels, 9, 11, dtype=torch.float64)
    twin = copy.deepcopy(conv)
    twin.weight.data *= kept
    torch.testing.assert_close(sparse(x), twin(x))
    back = sparse.dense_module()
    assert type(back) is nn.Conv2d
    torch.testing.assert_close(back(x), twin(x))
    assert repr(back) == repr(conv)


def test_from_dense_by_magnitude_keeps_the_largest():
    linear = nn.Linear(20, 10)
    sparse = SparseLinear.from_dense(linear, sparsity=0.8)
    threshold = linear.weight.abs().flatten().sort(descending=True).values[39]
    assert torch.equal(sparse.to_dense() != 0, linear.weight.abs() >= threshold)
    assert torch.equal(sparse.bias, linear.bias)
    assert sparse.bias is not linear.bias


def test_from_dense_with_a_mask():
    linear = nn.Linear(20, 10)
    mask = torch.rand(10, 20) < 0.3
    sparse = SparseLinear.from_dense(linear, mask=mask)
    assert torch.equal(sparse.to_dense(), linear.weight * mask)
    with pytest.raises(ValueError, match="mask: expected the weight's shape"):
        SparseLinear.from_dense(linear, mask=mask.t())


def test_from_dense_keeps_training_mode_and_frozen_parameters():
    linear = nn.Linear(4, 3).eval()
    linear.weight.requires_grad_(False)
    sparse = SparseLinear.from_dense(linear, 0.5)
    assert not sparse.training
    assert not sparse.weight_values.requires_grad
    assert sparse.bias.requires_grad
    assert not sparse.dense_module().weight.requires_grad


def test_from_dense_refuses_what_it_cannot_carry_over():
    class Standardized(nn.Conv2d):
        def forward(self, x):
            return F.conv2d(x, self.weight - self.weight.mean())

    hooked = nn.Conv2d(3, 4, 3)
    hooked.register_forward_hook(lambda module, args, out: out + 1)
    pruned = nn.Conv2d(3, 4, 3)
    prune.random_unstructured(pruned, "weight", 0.5)
    normalized = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    for conv, message in (
        (Standardized(3, 4, 3), "subclass"),
        (nn.LazyConv2d(4, 3), "it is lazy and has no weight yet"),
        (nn.ConvTranspose2d(3, 4, 3), "expected an nn.Conv2d"),
        (nn.Conv1d(3, 4, 3), "expected an nn.Conv2d"),
        (hooked, "hooks"),
        (pruned, "parametrized, normalized or pruned"),
        (normalized, "parametrized, normalized or pruned"),
        (nn.Conv2d(3, 4, 3).half(), "torch.float16"),
    ):
        with pytest.raises(TypeError, match=message):
            SparseConv2d.from_dense(conv, 0.5)
    conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(ValueError, match="exactly one of sparsity, nnz and mask, got none"):
        SparseConv2d.from_dense(conv)
    with pytest.raises(ValueError, match="got sparsity, mask"):
        SparseConv2d.from_dense(conv, 0.5, mask=torch.ones(4, 3, 3, 3))
    with pytest.raises(ValueError, match="keep: unknown value"):
        SparseConv2d.from_dense(conv, 0.5, keep="largest")


def test_to_dense_is_differentiable():
    linear = SparseLinear(5, 4, sparsity=0.5)
    (linear.to_dense() * torch.arange(20.0).view(4, 5)).sum().backward()
    assert torch.equal(linear.weight_values.grad[:, 0], linear.topology.linear_positions().float())
