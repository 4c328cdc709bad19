"""Tensors of more than 2**31 elements: every product of an index and a stride needs 64 bits."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.formats import gradient_of
from helpers.nn_cases import check_layer, layer
from torch import Tensor

from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.ops import library

from .device import DEVICE, ON_CUDA, needs_memory

pytestmark = pytest.mark.gpu
BEYOND = 2**31 if ON_CUDA else 2**12  # elements


def far_apart(x: Tensor, dim: int) -> Tensor:
    """The same numbers, with `dim`'s last index BEYOND elements after its first."""
    stride = [0] * x.dim()
    rest = 1
    for d in reversed(range(x.dim())):
        if d != dim:
            stride[d], rest = rest, rest * x.shape[d]
    stride[dim] = math.ceil(BEYOND / (x.shape[dim] - 1)) + 8
    needed = sum((s - 1) * step for s, step in zip(x.shape, stride, strict=True)) + 1
    needs_memory(2 * needed * x.element_size())
    view = x.new_empty(needed).as_strided(x.shape, stride)
    return view.copy_(x)


@pytest.mark.parametrize("dim", range(4), ids=["batch", "channel", "row", "column"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_strides_that_lead_far(dtype: torch.dtype, dim: int) -> None:
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    conv = layer(3, 4, 3, padding=1, stride=(1, 2), sparsity=0.3, dtype=weights).to(DEVICE)
    x = torch.randn(5, 3, 6, 8).to(DEVICE, dtype)
    grad = gradient_of(conv, x)
    check_layer(conv, far_apart(x, dim), grad)
    check_layer(conv, x, far_apart(grad, dim))


@pytest.mark.parametrize("many", ["outputs", "images"])
def test_outputs_and_gradients_of_more_than_int32_elements(many: str) -> None:
    """A pointwise layer of one channel on small integers, so that every sum is exact."""
    side = (1024 if many == "outputs" else 8192) if ON_CUDA else 16
    times = BEYOND // side**2 + 1
    n, rows = (1, times) if many == "outputs" else (times, 1)
    needs_memory(5 * BEYOND)  # bytes: two such bfloat16 tensors and what torch needs besides
    image = torch.zeros(1, 1, side, side)
    spots = torch.randint(side * side, (1000,), generator=torch.Generator().manual_seed(0))
    image.view(-1)[spots] = (spots % 5 - 2).float()
    image.view(-1)[-1] = 2.0
    image = image.to(DEVICE, torch.bfloat16)
    values = (torch.arange(rows, device=DEVICE) % 5 - 2).float()
    pattern = (torch.arange(rows + 1, device=DEVICE).int(), torch.zeros_like(values).int())
    shape = ConvShape((rows, 1, 1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)

    x = image.expand(n, 1, side, side)
    y = library.sparse_conv2d(x, values, None, *pattern, shape)
    assert y.numel() > BEYOND
    for part in torch.arange(rows).split(64):
        expected = image * values[part].to(torch.bfloat16).view(1, -1, 1, 1)
        for images in y.split(4):
            assert torch.equal(images[:, part], expected.expand(len(images), -1, -1, -1))

    size = (1, side, side)
    gx = library.sparse_conv2d_grad_input(y, values, *pattern, size, shape, False)
    expected = (image.float() * values.square().sum()).bfloat16()
    assert all(torch.equal(images, expected.expand_as(images)) for images in gx.split(4))
    del gx
    gvalues = library.sparse_conv2d_grad_weight(x, y, *pattern, shape, torch.float32)
    assert torch.equal(gvalues, values * (n * image.float().square().sum()))
