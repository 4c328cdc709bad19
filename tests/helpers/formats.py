"""Memory formats of activations, and the gradient that comes back through them."""

from __future__ import annotations

import pytest
import torch
from helpers.kernel_cases import (
    ISAS,
    LANES,
)
from torch import Tensor

variants = pytest.mark.parametrize(
    ("isa", "lanes"), [(isa, lanes) for isa in ISAS for lanes in LANES]
)


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
