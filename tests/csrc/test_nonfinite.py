"""Infinities and NaN reach the results that read them, and no other: lanes only pad, too.

Which results read what is found with zeros and ones, whose products no kernel can get wrong.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.kernel_cases import CASES, ISAS, applies, conv_and_input, kernels
from helpers.nn_cases import dense_results, layer, results
from torch import Tensor

from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.backends.native import _C

LANES = ("plane", "row", "batch")
NAMES = (
    *("28 wide", "7 wide", "65 wide", "32 wide, stride 2", "stem", "5 wide, 1 x 3", "groups"),
    *("13 wide, 5 x 2 'same'", "stride 3", "stride (4, 2) beyond the kernel", "dilation"),
    *("blocks and stride", "more blocks of channels", "bands and stride", "source of width 1"),
    *("1 x 1, padded", "1 x 1", "rows of taps that meet only padding"),
)
IN_TURN = list(zip(NAMES, itertools.cycle((1, 4, 1, 16)), strict=False))
READERS = {
    "y": ("input", "weights"),
    "gx": ("gradient", "weights"),
    "gvalues": ("input", "gradient"),
}
BAD = (float("nan"), float("inf"), float("-inf"))


def spoil(tensor: Tensor, where: Tensor) -> Tensor:
    """A copy with NaN and both infinities at these places of the flat tensor, in turn."""
    flat = tensor.detach().clone().flatten()
    flat[where] = torch.tensor([BAD[i % 3] for i in range(len(where))], dtype=flat.dtype)
    return flat.view(tensor.shape)


def corners(tensor: Tensor) -> Tensor:
    """Pixels at the borders, in several images and channels."""
    index = torch.arange(tensor.numel()).view(tensor.shape)
    picked = [index[0, 0, 0, 0], index[-1, -1, -1, -1], index[0, -1, -1, 0], index[-1, 0, 0, -1]]
    return torch.stack(picked).unique()


def check(conv: SparseConv2d, x: Tensor, grad: Tensor, bad: str) -> None:
    """`bad`: which operand is spoilt, 'input', 'gradient' or 'weights'."""
    weights = conv.weight_values.detach()
    operands = {"input": x, "gradient": grad, "weights": weights}
    last = max(weights.numel() - 1, 0)
    places = {
        "input": corners(x),
        "gradient": corners(grad),
        "weights": torch.tensor([0, last // 2, last]).unique(),
    }[bad]
    marks = torch.zeros_like(operands[bad]).flatten()
    marks[places] = 1
    ones = {name: torch.ones_like(t) for name, t in operands.items()}
    ones[bad] = marks.view_as(ones[bad])
    clean = operands | {bad: operands[bad] * (1 - ones[bad])}
    spoilt = operands | {bad: spoil(operands[bad], places)}

    def with_operands(compute, given: dict[str, Tensor], *args) -> list[Tensor]:
        with torch.no_grad():
            conv.weight_values.copy_(given["weights"])
        return compute(conv, given["input"], given["gradient"], *args)[:3]

    bias, conv.bias = conv.bias, None
    reads = with_operands(dense_results, ones, torch.float64, "cpu")
    expected = with_operands(dense_results, clean, torch.float64, "cpu")
    ours = with_operands(results, spoilt)
    conv.bias = bias
    for name, read, right, got in zip(READERS, reads, expected, ours, strict=True):
        what = f"{name} of {conv}, {bad} spoilt"
        there = read == 0 if bad in READERS[name] else torch.ones_like(read, dtype=torch.bool)
        assert (got.isfinite() == there).all(), what
        allowed = 1e-3 if got.dtype != torch.bfloat16 else 0.05
        off = (got.double() - right)[there].abs()
        assert not off.numel() or off.max() <= allowed * max(1, right.abs().max()), what


@pytest.mark.parametrize("bad", ["input", "gradient", "weights"])
@pytest.mark.parametrize(("name", "size"), IN_TURN)
@pytest.mark.parametrize(("isa", "lanes"), list(itertools.product(ISAS, LANES)))
def test_they_stay_where_they_are_read(isa: str, lanes: str, name: str, size: int, bad: str):
    if not applies(name, isa, lanes):
        return
    conv, x = conv_and_input(name, block_size=size)
    with kernels(isa, lanes, threads=2 if name == "groups" else 1):
        check(conv, x, torch.randn_like(conv(x)), bad)


@pytest.mark.parametrize("bad", ["input", "gradient", "weights"])
@pytest.mark.parametrize("name", ["28 wide", "blocks and stride", "groups"])
@pytest.mark.parametrize("lanes", ["plane", "batch"])
def test_of_float64_and_channels_last(lanes: str, name: str, bad: str) -> None:
    conv, x = conv_and_input(name, torch.float64)
    x = x.contiguous(memory_format=torch.channels_last)
    with kernels(_C.isa(), lanes):
        check(conv, x, torch.randn_like(conv(x)), bad)


@pytest.mark.parametrize("bad", ["gradient", "weights", "input"])
@pytest.mark.parametrize("size", [1, 16, 32])
@pytest.mark.parametrize("isa", [isa for isa in _C.available_isas() if isa not in ("avx2", "amx")])
def test_of_bfloat16(isa: str, size: int, bad: str) -> None:
    """Blocks of 16 and 32 run on a matrix unit, or its plain twin. AMX's multiplies the zeros that
    fill up its tiles with the gradient, as docs/limits.md says.
    """
    for name in ("7 wide", "32 wide, stride 2", "groups", "1 x 1"):
        (c, o, kernel, image, n), rest = CASES[name]
        conv = layer(c * 2, max(o, 64) // 32 * 32 * rest.get("groups", 1), kernel, **rest)
        conv = SparseConv2d.from_dense(conv.dense_module(), 0.7, block_size=size)
        x = torch.randn(n, c * 2, *image).bfloat16()
        with kernels(isa):
            check(conv, x, torch.randn_like(conv(x)), bad)


def test_the_pixels_that_nothing_reads() -> None:
    """A kernel of 2 with stride 2 leaves out the last of 33 columns."""
    conv = layer(2, 3, 2, stride=2, sparsity=0.0)
    x = torch.randn(1, 2, 33, 33)
    x[..., -1] = torch.nan
    y, gx, gvalues, gbias = results(conv, x, torch.ones(1, 3, 16, 16))
    assert all(t.isfinite().all() for t in (y, gx, gvalues, gbias))


def test_linear_layers_as_torch() -> None:
    linear = SparseLinear(9, 7, sparsity=0.5)
    with torch.no_grad():
        linear.weight_values[3] = torch.inf
    x = torch.randn(17, 9)
    x[4, 2] = torch.nan
    ours, dense = linear(x), linear.dense_module()
    assert (ours.isfinite() >= dense(x).isfinite()).all()
