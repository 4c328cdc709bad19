"""bfloat16 activations: float32 kernels that widen what they pack and round what they store.

So a result must have the very bits of the float32 result on the widened tensors, rounded.
"""

from __future__ import annotations

import pytest
import torch
from helpers.formats import FORMATS, gradient_of, variants
from helpers.kernel_cases import applies, conv_and_input, kernels
from helpers.nn_cases import layer
from torch import Tensor

from dsr_kernels import SparseConv2d

CASES = [
    "28 wide",
    "7 wide",
    "16 wide",
    "16 wide, stride 2",
    "32 wide, stride 2",
    "8 wide",
    "4 wide",
    "13 wide, 5 x 2 'same'",
    "stride (3, 2), 2 x 1",
    "65 wide",
    "blocks of channels",
    "depthwise",
    "destination of width 1",
    "1 x 1",
    "1 x 1, stride 2",
]
LOW = torch.bfloat16


def results(conv: SparseConv2d, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = conv(x)
    return y.detach(), *torch.autograd.grad(y, (x, conv.weight_values), grad)


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype == LOW and torch.equal(
        one.contiguous().view(torch.int16), other.contiguous().view(torch.int16)
    )


def check(conv: SparseConv2d, x: Tensor, grad: Tensor) -> None:
    """x and grad are bfloat16, of any strides."""
    y, gx, gvalues = results(conv, x, grad)
    wide_y, wide_gx, wide_gvalues = results(conv, x.float(), grad.float())
    assert same_bits(y, wide_y.bfloat16())
    assert same_bits(gx, wide_gx.bfloat16())
    assert torch.equal(gvalues, wide_gvalues)
    assert gvalues.dtype == torch.float32


@pytest.mark.parametrize("name", CASES)
@variants
def test_same_bits_as_float32_rounded(isa: str, lanes: str, name: str) -> None:
    if not applies(name, isa, lanes):
        pytest.skip("refused; see test_lanes")
    conv, x = conv_and_input(name)
    with kernels(isa, lanes):
        grad = gradient_of(conv, x)
        for of in FORMATS["NCHW"][0], FORMATS["channels_last"][0]:
            check(conv, of(x.bfloat16()), of(grad.bfloat16()))


@pytest.mark.parametrize("name", FORMATS)
@variants
def test_same_bits_in_every_memory_format(isa: str, lanes: str, name: str) -> None:
    of_x, of_grad = FORMATS[name]
    with kernels(isa, lanes):
        for case in ("4 wide", "stem" if applies("stem", isa, lanes) else "7 wide"):
            conv, x = conv_and_input(case)
            x = of_x(x.bfloat16())
            check(conv, x, of_grad(gradient_of(conv, x)))


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@variants
def test_under_autocast(isa: str, lanes: str, last: bool) -> None:
    conv, x = conv_and_input("4 wide")
    x = x.to(memory_format=torch.channels_last) if last else x
    with kernels(isa, lanes):
        low = x.bfloat16()
        grad = gradient_of(conv, low)
        with torch.autocast("cpu", dtype=LOW):
            y, gx, gvalues = results(conv, x, grad)
        expected = results(conv, low, grad)
        wide = results(conv, low.float(), grad.float())
    assert same_bits(y, wide[0].bfloat16())
    assert gx.dtype == torch.float32
    assert same_bits(gx.bfloat16(), wide[1].bfloat16())
    assert torch.equal(gx, expected[1].float())
    assert torch.equal(gvalues, wide[2])


def products_with(factors: list[float]) -> SparseConv2d:
    """Each output is one product. Strided, as other pointwise layers take kPlane by themselves."""
    conv = layer(1, len(factors), 1, stride=(2, 1), sparsity=0.0, bias=False)
    with torch.no_grad():
        conv.weight_values.copy_(torch.tensor(factors)[:, None])
    return conv


@pytest.mark.parametrize("width", [16, 8, 7])
@variants
def test_ties_round_to_even(isa: str, lanes: str, width: int) -> None:
    """One product per output, halfway between two bfloat16 numbers or next to halfway."""
    ulp = 2.0**-7  # of bfloat16 at 1
    tie, above = 1 + ulp / 2, 1 + ulp / 2 + 2.0**-23
    expected = {
        tie: 1.0,
        above: 1 + ulp,
        1 + ulp / 2 - 2.0**-23: 1.0,
        1 + 3 * ulp / 2: 1 + 2 * ulp,
        2 - ulp / 2: 2.0,  # carries into the exponent
    }
    conv = products_with(list(expected))
    scales = 2.0 ** torch.arange(-8, 8) * torch.tensor([1.0, -1.0]).repeat(8)
    x = scales.repeat(9 * width)[: 16 * width * 9].view(16, 1, 9, width)
    rounded = torch.tensor(list(expected.values())).view(1, -1, 1, 1) * x[:, :, ::2]
    with kernels(isa, lanes):
        y = conv(x.bfloat16())
    assert same_bits(y, rounded.bfloat16())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", ["16 wide", "4 wide", "7 wide"])
@variants
def test_nan_and_infinity_stay_what_they_are(isa: str, lanes: str, name: str, value: float) -> None:
    conv, x = conv_and_input(name)
    x[1, 0, 1, :] = value
    x[2, :, -1, -1] = value
    x = x.bfloat16()
    with kernels(isa, lanes), torch.no_grad():
        y, expected = conv(x), conv(x.float()).bfloat16()
    assert torch.equal(y.isnan(), expected.isnan())
    assert torch.equal(y.nan_to_num(7.0, 8.0, 9.0), expected.nan_to_num(7.0, 8.0, 9.0))
    assert not y.isfinite().all()


@pytest.mark.parametrize("width", [16, 7])
@variants
def test_what_rounds_beyond_the_largest_is_infinite(isa: str, lanes: str, width: int) -> None:
    conv = products_with([2 - 2.0**-7, 2 - 2.0**-8, 2 - 2.0**-8 - 2.0**-22])
    x = torch.full((16, 1, 2, width), 2.0**127)
    x[1::2] *= -1
    with kernels(isa, lanes), torch.no_grad():
        assert conv(x).isfinite().all()
        y = conv(x.bfloat16())
    largest = torch.finfo(LOW).max
    expected = torch.tensor([largest, torch.inf, largest]).view(1, 3, 1, 1) * x[:, :, :1].sign()
    assert same_bits(y, expected.bfloat16())
