"""An infinite weight reaches what reads it, and no border, where more is fused in."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.kernel_cases import CASES, ISAS, applies, conv_and_input, kernels
from helpers.nn_cases import layer
from torch import Tensor

from dsr_kernels import SparseConv2d
from dsr_kernels.backends import dispatch
from dsr_kernels.backends.fused import Affine, Prologue
from dsr_kernels.backends.native import _C
from dsr_kernels.nn import functional
from dsr_kernels.ops.fused import composed

NAMES = (
    *("28 wide", "7 wide", "32 wide, stride 2", "5 wide, 1 x 3", "groups", "dilation"),
    *("stride (4, 2) beyond the kernel", "source of width 1", "1 x 1, padded"),
    "rows of taps that meet only padding",
)


def spoil(conv: SparseConv2d) -> None:
    """An infinity and a NaN among the weights."""
    with torch.no_grad():
        flat = conv.weight_values.view(-1)
        flat[0], flat[-1] = torch.inf, torch.nan


def numbers(channels: int, dtype: torch.dtype) -> Affine:
    generator = torch.Generator().manual_seed(channels)
    made = torch.rand(3, channels, generator=generator, dtype=dtype) + 0.5
    return Affine(*made)


def fused_results(conv: SparseConv2d, x: Tensor, relu: bool) -> list[Tensor]:
    """Training with everything, and inference."""
    kind = conv.weight_values.dtype
    by = [t.requires_grad_() for t in numbers(x.shape[1], kind)]
    x = x.detach().requires_grad_()
    weight = conv.weight_values, conv.bias, conv.crow_indices, conv.col_indices
    shape = conv.weight_shape, conv.stride, conv._sides, conv.dilation, conv.groups
    prologue = Prologue(Affine(*by), relu)
    plain = functional.sparse_conv2d_fused(x, prologue, *weight, *shape)
    residual = torch.ones_like(plain.y).requires_grad_()
    y = functional.sparse_conv2d_fused(
        x, prologue, *weight, *shape, residual=residual, statistics=True
    )
    grad = torch.ones_like(y.y) + torch.linspace(0, 1, y.y.shape[-1], dtype=y.y.dtype)
    of = [x, *by, conv.weight_values, residual]
    grads = torch.autograd.grad([y.y, y.x], of, [grad, torch.ones_like(x)])
    with torch.no_grad():
        scale, shift, _ = numbers(conv.out_channels, kind)
        values, _, *pattern = weight
        folded = functional.sparse_conv2d_folded(
            x, prologue, values, *pattern, *shape, scale=scale, shift=shift, relu=relu
        )
    return [plain.y.detach(), y.y.detach(), y.mean.detach(), y.variance.detach(), *grads, folded]


def check(conv: SparseConv2d, x: Tensor, relu: bool, tolerance: float) -> None:
    spoil(conv)
    ours = fused_results(conv, x, relu)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch, "fused_backend", lambda _: composed)
        patch.setattr(functional.fused.library, "look", lambda *_: None)
        expected = fused_results(conv, x, relu)
    for number, (got, right) in enumerate(zip(ours, expected, strict=True)):
        there = right.isfinite()
        assert (got.isfinite() == there).all(), number
        off = (got.double() - right.double())[there].abs()
        most = max(1, right[there].abs().max().item()) if there.any() else 1
        assert not off.numel() or off.max() <= tolerance * most, number


@pytest.mark.parametrize(("isa", "lanes"), list(itertools.product(ISAS, ("plane", "row", "batch"))))
@pytest.mark.parametrize("relu", [True, False], ids=["relu", ""])
@pytest.mark.parametrize("name", NAMES)
def test_it_stays_where_it_is_read(name: str, relu: bool, isa: str, lanes: str) -> None:
    if not applies(name, isa, lanes):
        return
    conv, x = conv_and_input(name)
    with kernels(isa, lanes, threads=2 if name == "groups" else 1):
        check(conv, x, relu, 1e-3)


@pytest.mark.parametrize("name", ["28 wide", "7 wide"])
def test_of_float64_and_channels_last(name: str) -> None:
    conv, x = conv_and_input(name, torch.float64)
    with kernels(_C.isa(), "batch"):
        check(conv, x.contiguous(memory_format=torch.channels_last), True, 1e-6)


@pytest.mark.parametrize("size", [1, 16, 32])
@pytest.mark.parametrize("isa", [isa for isa in _C.available_isas() if isa != "avx2"])
def test_of_bfloat16(isa: str, size: int) -> None:
    for name in ("7 wide", "32 wide, stride 2", "groups"):
        (c, o, kernel, image, n), rest = CASES[name]
        conv = layer(c * 2, max(o, 64) // 32 * 32 * rest.get("groups", 1), kernel, **rest)
        conv = SparseConv2d.from_dense(conv.dense_module(), 0.7, block_size=size)
        x = torch.randn(n, c * 2, *image).bfloat16()
        with kernels(isa):
            check(conv, x, True, 0.05)
