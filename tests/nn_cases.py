"""Shared by the tests of the layers: comparing with torch under the project's tolerance rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsr_kernels import SparseConv2d
from dsr_kernels.topology import Topology

ARGUMENTS = {
    "in_channels": 6,
    "out_channels": 9,
    "kernel_size": (3, 2),
    "stride": (1, 2),
    "padding": (2, 1),
    "dilation": (2, 1),
    "groups": 3,
}


def within_rule(ours: Tensor, torchs: Tensor, exact: Tensor) -> bool:
    """err(ours, ref64) <= 2 err(torch in the same dtype, ref64) + 1e-5."""
    assert ours.shape == exact.shape, (ours.shape, exact.shape)
    if not exact.numel():
        return True
    error = (ours.double() - exact).abs().max().item()
    allowed = 2 * (torchs.double() - exact).abs().max().item() + 1e-5
    return error <= allowed  # False for NaN


def layer(*args, sparsity: float = 0.7, seed: int = 0, **kwargs) -> SparseConv2d:
    """A layer drawn from `seed`, which also seeds whatever the test draws after it."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return SparseConv2d(*args, sparsity=sparsity, generator=generator, **kwargs)


def states_equal(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def dense_conv(conv: SparseConv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What nn.Conv2d with the layer's arguments computes from an explicit weight."""
    padding = conv.padding
    if conv.padding_mode != "zeros":
        top, bottom, left, right = conv._sides
        x, padding = F.pad(x, (left, right, top, bottom), mode=conv.padding_mode), 0
    return F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)


def check_layer(conv: SparseConv2d, x: Tensor, grad: Tensor | None = None) -> None:
    """Forward and all three gradients of a layer against F.conv2d, in x's dtype and in float64."""
    x = x if x.requires_grad else x.detach().requires_grad_()
    y = conv(x)
    grad = torch.randn_like(y) if grad is None else grad
    inputs = [x, conv.values] + ([] if conv.bias is None else [conv.bias])
    ours = [y.detach(), *torch.autograd.grad(y, inputs, grad)]
    same, exact = (_dense_results(conv, x, grad, dtype) for dtype in (x.dtype, torch.float64))
    for name, *results in zip(("y", "gx", "gvalues", "gbias"), ours, same, exact, strict=False):
        assert within_rule(*results), name
        assert results[0].dtype == (x.dtype if name in ("y", "gx") else conv.values.dtype)


def _dense_results(conv: SparseConv2d, x: Tensor, grad: Tensor, dtype: torch.dtype) -> list[Tensor]:
    x = x.detach().to(dtype).requires_grad_()
    values = conv.values.detach().to(dtype).requires_grad_()
    bias = None if conv.bias is None else conv.bias.detach().to(dtype).requires_grad_()
    topology = conv.topology
    weight = torch.zeros(conv.numel, dtype=dtype)
    weight = weight.index_put((topology.linear_positions(),), values).view(conv.weight_shape)
    y = dense_conv(conv, x, weight, bias)
    inputs = [x, values] + ([] if bias is None else [bias])
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.to(dtype))]


def swap_pattern(module, nnz: int, seed: int = 1) -> None:
    """Replace a layer's pattern by a random one of `nnz` entries with random values."""
    generator = torch.Generator().manual_seed(seed)
    topology = Topology.random(module.weight_shape, nnz, generator=generator)
    values = torch.randn(nnz, generator=generator, dtype=module.values.dtype)
    module.replace_topology(topology.crow_indices, topology.col_indices, values)
