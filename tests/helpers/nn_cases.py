"""Shared by the tests of the layers: comparing with torch under the project's tolerance rule."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dsr_kernels import SparseConv1d, SparseConv2d, SparseLinear, SparseModule
from dsr_kernels.ops.results import LOW_PRECISION
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


def within_rule(ours: Tensor, torchs: Tensor, exact: Tensor, beside: float = 0.0) -> bool:
    """err(ours, ref64) <= 2 err(torch in the same dtype, ref64) + 1e-5.

    What rounding to the dtype costs at least, half a unit in the last place, is not charged: a sum
    of some hundreds in float32, where torch may have been lucky, and bfloat16 or float16 results,
    which are float32 ones rounded, so that there `torchs` are float32. Nor is `beside`, a share of
    the largest result.
    """
    assert ours.shape == exact.shape, (ours.shape, exact.shape)
    if not exact.numel():
        return True
    rounding = 0.505 * torch.finfo(ours.dtype).eps * exact.abs()
    error = ((ours.double() - exact).abs() - rounding).max().item()
    allowed = 2 * (torchs.double() - exact).abs().max().item() + 1e-5
    allowed += beside * exact.abs().max().item() if beside else 0
    return error <= allowed  # False for NaN


def layer(*args, sparsity: float = 0.7, seed: int = 0, **kwargs) -> SparseConv2d:
    """A layer drawn from `seed`, which also seeds whatever the test draws after it."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    return SparseConv2d(*args, sparsity=sparsity, generator=generator, **kwargs)


def states_equal(one: nn.Module, two: nn.Module) -> bool:
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def dense_conv(conv: SparseModule, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """What the layer's dense twin with its arguments computes from an explicit weight."""
    if isinstance(conv, SparseLinear):
        return F.linear(x, weight, bias)
    padding = conv.padding
    if conv.padding_mode != "zeros":
        *rows, left, right = conv._sides
        x, padding = F.pad(x, (left, right, *rows), mode=conv.padding_mode), 0
    convolve = F.conv1d if isinstance(conv, SparseConv1d) else F.conv2d
    return convolve(x, weight, bias, conv.stride, padding, conv.dilation, conv.groups)


def check_layer(
    conv: SparseModule, x: Tensor, grad: Tensor | None = None, device: str | torch.device = "cpu"
) -> None:
    """Forward and all three gradients of a layer, on whatever device, against torch's dense one.

    torch computes on `device`, in x's dtype and in float64.
    """
    x = x if x.requires_grad else x.detach().requires_grad_()
    y = conv(x)
    grad = torch.randn_like(y) if grad is None else grad
    check_results(conv, x, grad, [y.detach(), *gradients(conv, x, y, grad)], device)


def gradients(conv: SparseModule, x: Tensor, y: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    """(gx, gvalues) and, with a bias, gbias, from y = conv(x)."""
    inputs = [x, conv.weight_values] + ([] if conv.bias is None else [conv.bias])
    return torch.autograd.grad(y, inputs, grad)


def results(conv: SparseModule, x: Tensor, grad: Tensor) -> list[Tensor]:
    """[y, gx, gvalues] and, with a bias, gbias."""
    x = x.detach().requires_grad_()
    y = conv(x)
    return [y.detach(), *gradients(conv, x, y, grad)]


def same_bits(ones: list[Tensor], others: list[Tensor]) -> bool:
    """Of finite numbers."""
    pairs = zip(ones, others, strict=True)
    return all(a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu()) for a, b in pairs)


def check_results(
    conv: SparseModule,
    x: Tensor,
    grad: Tensor,
    ours: list[Tensor],
    device: str | torch.device = "cpu",
    beside: tuple[float, float, float] = (0, 0, 0),
) -> None:
    """`ours`, being [y, gx, gvalues, gbias], the last one where there is a bias, against torch.

    `beside` is within_rule's, of the first three.
    """
    dtype = torch.float32 if x.dtype in LOW_PRECISION else x.dtype
    same, exact = (dense_results(conv, x, grad, d, device) for d in (dtype, torch.float64))
    names = ("y", "gx", "gvalues", "gbias")
    for name, *results, more in zip(names, ours, same, exact, (*beside, 0), strict=False):
        assert results[0].dtype == (x.dtype if name in ("y", "gx") else conv.weight_values.dtype), (
            name
        )
        results[0] = results[0].to(device)
        assert within_rule(*results, more), f"{name} of {conv}, input {tuple(x.shape)} {x.dtype}"


def positions_of(conv: SparseModule) -> Tensor:
    """[blocks, block_size]: where in the flat dense weight each value is."""
    size, length = conv.block_size, conv.row_length
    block = conv.topology.linear_positions()[:, None]
    row = block // length * size + torch.arange(size, device=block.device)
    return row * length + block % length


def dense_results(
    conv: SparseModule, x: Tensor, grad: Tensor, dtype: torch.dtype, device: str | torch.device
) -> list[Tensor]:
    """[y, gx, gvalues] and, with a bias, gbias, by F.conv2d in `dtype` on `device`."""
    x = x.detach().to(device, dtype).requires_grad_()
    values = conv.weight_values.detach().to(device, dtype).requires_grad_()
    bias = None if conv.bias is None else conv.bias.detach().to(device, dtype).requires_grad_()
    weight = torch.zeros(conv.numel, dtype=dtype, device=device)
    weight = weight.index_put((positions_of(conv).to(device),), values).view(conv.weight_shape)
    y = dense_conv(conv, x, weight, bias)
    inputs = [x, values] + ([] if bias is None else [bias])
    return [y.detach(), *torch.autograd.grad(y, inputs, grad.to(device, dtype))]


def swap_pattern(module, nnz: int, seed: int = 1) -> None:
    """Replace a layer's pattern by a random one of `nnz` weights with random values."""
    generator = torch.Generator().manual_seed(seed)
    options = {"block_size": module.block_size, "generator": generator}
    topology = Topology.random(module.weight_shape, nnz, **options)
    values = torch.randn(nnz, generator=generator, dtype=module.weight_values.dtype)
    topology, values = (
        topology.to(module.weight_values.device),
        values.to(module.weight_values.device),
    )
    module.replace_topology(topology.crow_indices, topology.col_indices, values)
