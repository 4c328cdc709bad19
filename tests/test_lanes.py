"""Every kernel in every variant: instruction sets x lanes, against torch in float64.

Forced, since what a batch and a geometry choose by themselves would leave most pairs untried.
"""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    CASES,
    ISAS,
    LANES,
    applies,
    conv_and_input,
    kernels,
    single_nonzero,
    used_lanes,
)
from nn_cases import check_layer, layer
from torch import Tensor

variants = pytest.mark.parametrize(
    ("isa", "lanes"), [(isa, lanes) for isa in ISAS for lanes in LANES]
)

# Rows of 16, 8 and 4 take paths of their own; 7 and 13 leave lanes over; stride 2 packs halves.
FORMAT_CASES = [
    ((6, 18, 3, (6, 16), 3), {"padding": 1}),
    ((18, 3, 3, (9, 8), 16), {"padding": 1}),
    ((4, 16, 3, (8, 4), 17), {"padding": 1}),
    ((20, 33, 3, (5, 7), 16), {"padding": 1, "stride": 2}),
    ((1, 5, 3, (5, 13), 9), {"padding": 1, "stride": (1, 2)}),
    ((4, 1, 1, (6, 8), 17), {"stride": 2}),
]


def channels_last(x: Tensor) -> Tensor:
    return x.to(memory_format=torch.channels_last)


def sliced(x: Tensor) -> Tensor:
    """The same numbers, no two of them adjacent, among others that must not be read."""
    n, c, h, w = x.shape
    frame = x.new_full((2 * n, c + 1, h + 2, 3 * w), torch.nan)
    view = frame[::2, 1:, 1:-1, 1::3]
    view.copy_(x)
    return view.requires_grad_(x.requires_grad)


def cropped(x: Tensor) -> Tensor:
    """The same numbers in rows of a wider image: adjacent, but not from row to row."""
    n, c, h, w = x.shape
    view = x.new_full((n, c, h + 3, w + 5), torch.nan)[:, :, 2:-1, 3 : 3 + w]
    view.copy_(x)
    return view


def as_is(x: Tensor) -> Tensor:
    return x


def crosswise(x: Tensor) -> Tensor:
    """The same numbers, columns adjacent instead of rows."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


FORMATS = {
    "NCHW": (as_is, as_is),
    "channels_last": (channels_last, channels_last),
    "sliced": (sliced, sliced),
    "cropped": (cropped, cropped),
    "transposed": (crosswise, crosswise),
    "channels_last, NCHW gradient": (channels_last, as_is),
    "NCHW, channels_last gradient": (as_is, channels_last),
    "cropped, sliced gradient": (cropped, sliced),
    "expanded gradient": (as_is, lambda g: g[:1, :1, :1, :1].expand(g.shape)),
    "channels_last, gradient of a mean": (
        channels_last,
        lambda g: g[:, :, :1, :1].contiguous().expand(g.shape),
    ),
}


def gradient_of(conv, x: Tensor) -> Tensor:
    with torch.no_grad():
        grad = torch.randn(conv(x).shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
        return grad.to(x.device)


@pytest.mark.parametrize("name", CASES)
@variants
def test_every_variant_of_every_kernel(isa: str, lanes: str, name: str) -> None:
    conv, x = conv_and_input(name)
    with kernels(isa, lanes):
        if applies(name, isa, lanes):
            check_layer(conv, x)
            assert used_lanes() == {"plane" if name == "1 x 1" else lanes}
        else:
            with pytest.raises(ValueError, match="lanes 'row': need float32, rows of at most"):
                conv(x)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", ["plane", "batch"])
def test_float64(isa: str, lanes: str, name: str) -> None:
    conv, x = conv_and_input(name, torch.float64)
    with kernels(isa, lanes):
        check_layer(conv, x[:17])


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 8, 9, 15, 16, 17, 31, 33, 100])
@variants
def test_every_batch_of_one_plan(isa: str, lanes: str, batch: int) -> None:
    conv = layer(5, 6, 3, padding=1, sparsity=0.5)
    with kernels(isa, lanes):
        check_layer(conv, torch.randn(batch, 5, 4, 7))


@variants
def test_a_single_nonzero(isa: str, lanes: str) -> None:
    conv, x = single_nonzero()
    with kernels(isa, lanes):
        check_layer(conv, x)


@pytest.mark.parametrize("name", FORMATS)
@variants
def test_memory_formats(isa: str, lanes: str, name: str) -> None:
    of_x, of_grad = FORMATS[name]
    with kernels(isa, lanes):
        for sizes, arguments in FORMAT_CASES:
            c, o, kernel, size, n = sizes
            conv = layer(c, o, kernel, sparsity=0.4, **arguments)
            x = of_x(torch.randn(n, c, *size))
            check_layer(conv, x, of_grad(gradient_of(conv, x)))


@variants
def test_the_gradient_of_a_sum(isa: str, lanes: str) -> None:
    conv, x = conv_and_input("7 wide")
    x.requires_grad_()
    with kernels(isa, lanes):
        conv(x).sum().backward()
        ours = x.grad, conv.values.grad, conv.bias.grad
        y = conv(x)
        dense = torch.autograd.grad(y, (x, conv.values, conv.bias), torch.ones_like(y))
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["channels_last", "NCHW"])
@variants
def test_pointwise_with_a_stride_leaves_other_memory_alone(isa: str, lanes: str, name: str) -> None:
    """Few channels in channels_last, where a vector is wider than a pixel; a crash shows late."""
    conv = layer(4, 4, 1, stride=2, sparsity=0.25)
    x = FORMATS[name][0](torch.randn(9, 4, 8, 6)).requires_grad_()
    with kernels(isa, lanes):
        check_layer(conv, x)
        for _ in range(200):
            conv(x).sum().backward()
