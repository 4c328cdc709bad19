"""Shared by the tests of the elementwise operations: operands, and their meaning in float64."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsr_kernels.backends.fused import Affine
from dsr_kernels.ops.fused import elementwise

# Whether there is an other, and whether it has an affine map.
OTHERS = {"alone": (False, False), "other": (True, False), "other mapped": (True, True)}
DTYPES = (torch.float32, torch.float64, torch.bfloat16)


class Operands(NamedTuple):
    x: Tensor
    by: Affine
    other: Tensor | None = None
    other_by: Affine | None = None

    def tensors(self) -> list[Tensor]:
        given = (self.x, *self.by, self.other, *elementwise.flat(self.other_by))
        return [t for t in given if t is not None]


def numbers_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def operands(size, dtype=torch.float32, which="other mapped", requires_grad=False, seed=0):
    """Random ones; no number of a channel is as any other's."""
    generator = torch.Generator().manual_seed(seed)
    has_other, mapped = OTHERS[which]

    def random(*shape, dtype=dtype):
        made = torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype)
        return made.requires_grad_(requires_grad)

    def affine():
        return Affine(*(random(size[1], dtype=numbers_dtype(dtype)) for _ in range(3)))

    x, by = random(*size), affine()
    other, other_by = random(*size), affine()
    return Operands(x, by, other if has_other else None, other_by if mapped else None)


def widened(given: Operands) -> Operands:
    """The same numbers in float64, as leaves of a graph."""

    def wide(t: Tensor) -> Tensor:
        return t.detach().double().requires_grad_()

    def wide_affine(by: Affine | None) -> Affine | None:
        return None if by is None else Affine(*map(wide, by))

    other = None if given.other is None else wide(given.other)
    return Operands(wide(given.x), wide_affine(given.by), other, wide_affine(given.other_by))


def reference(given: Operands, relu: bool) -> Tensor:
    """channel_affine in torch's words."""

    def affine(x: Tensor, by: Affine) -> Tensor:
        center, scale, shift = (t[:, None, None] for t in by)
        return (x - center) * scale + shift

    y = affine(given.x, given.by)
    if given.other is not None:
        y = y + (given.other if given.other_by is None else affine(given.other, given.other_by))
    return torch.relu(y) if relu else y


def gradient_like(y: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    made = torch.randn(y.shape, dtype=torch.float64, generator=generator)
    return made.to(y.dtype)


def assert_near(ours: Tensor, exact: Tensor, scale: float = 1.0) -> None:
    """Within the rounding of ours' dtype; `scale` is how large what was added up is."""
    eps = torch.finfo(ours.dtype).eps
    atol = 8 * scale * torch.finfo(numbers_dtype(ours.dtype)).eps
    # Of float64, torch's own rounding is as large as ours.
    torch.testing.assert_close(ours.double(), exact, rtol=max(8 * eps, 1e-12), atol=16 * atol)


def check_affine(given: Operands, relu: bool, grad_format=lambda grad: grad) -> None:
    """channel_affine and its gradients beside those of torch in float64."""
    leaves, exact = Operands(*given), widened(given)
    for tensor in leaves.tensors():
        tensor.requires_grad_()
    y = elementwise.channel_affine(leaves.x, leaves.by, relu, *leaves[2:])
    expected = reference(exact, relu)
    assert y.dtype == given.x.dtype
    assert_near(y, expected.detach(), scale=16)
    grad = grad_format(gradient_like(y.detach()))
    ours = torch.autograd.grad(y, leaves.tensors(), grad)
    theirs = torch.autograd.grad(expected, exact.tensors(), grad.double())
    added_up = 16 * max(1.0, (y.numel() / y.shape[1]) ** 0.5)
    for mine, other in zip(ours, theirs, strict=True):
        assert_near(mine, other, scale=16 if mine.dim() == 4 else added_up)


def check_moments(x: Tensor) -> None:
    """channel_moments and its gradient beside those of torch in float64."""
    leaf, exact = x.detach().requires_grad_(), x.detach().double().requires_grad_()
    mean, variance = elementwise.channel_moments(leaf)
    exact_variance, exact_mean = torch.var_mean(exact, (0, 2, 3), correction=0)
    assert mean.dtype == variance.dtype == numbers_dtype(x.dtype)
    assert_near(mean, exact_mean.detach())
    assert_near(variance, exact_variance.detach())
    grads = gradient_like(mean.detach()), gradient_like(variance.detach()) * 2
    (ours,) = torch.autograd.grad((mean, variance), leaf, grads)
    theirs = torch.autograd.grad(
        (exact_mean, exact_variance), exact, tuple(g.double() for g in grads)
    )
    assert_near(ours, theirs[0])
