"""Every kernel in every variant: instruction sets x lanes, against torch in float64.

Forced, since what a batch and a geometry choose by themselves would leave most pairs untried.
"""

from __future__ import annotations

import pytest
import torch
from helpers.formats import (
    FORMAT_CASES,
    FORMATS,
    gradient_of,
    variants,
)
from helpers.kernel_cases import (
    CASES,
    ISAS,
    applies,
    conv_and_input,
    kernels,
    single_nonzero,
    used_lanes,
)
from helpers.nn_cases import check_layer, layer

# Rows of 16, 8 and 4 take paths of their own; 7 and 13 leave lanes over; stride 2 packs halves.


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
        ours = x.grad, conv.weight_values.grad, conv.bias.grad
        y = conv(x)
        dense = torch.autograd.grad(y, (x, conv.weight_values, conv.bias), torch.ones_like(y))
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
