"""The GPU's convolution kernels on every shape, memory format and type, against torch in float64.

Under the tilings that are chosen for a whole GPU; test_cuda_kernels.py has the others.
"""

from __future__ import annotations

from itertools import cycle, permutations

import pytest
import torch
from helpers.cuda_conv_cases import DTYPES, SHAPES, conv_and_input, dtypes, floats, gpu_kernels
from helpers.cuda_device import DEVICE
from helpers.formats import FORMAT_CASES, FORMATS, gradient_of
from helpers.nn_cases import check_layer, results, same_bits, swap_pattern, within_rule
from helpers.op_cases import check_against_the_reference, check_derivatives, check_opcheck

from dsr_kernels import SparseLinear
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.cuda.plans import Device
from dsr_kernels.nn import functional
from dsr_kernels.ops import library, reference
from dsr_kernels.topology import Topology


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape(name: str) -> None:
    with gpu_kernels():
        check_layer(*conv_and_input(*SHAPES[name]))


@pytest.mark.parametrize("dtype, name", list(zip(cycle(DTYPES[1:]), SHAPES, strict=False)), ids=str)
def test_shapes_in_other_types(dtype: torch.dtype, name: str) -> None:
    with gpu_kernels():
        check_layer(*conv_and_input(*SHAPES[name], dtype))


@pytest.mark.parametrize("name", FORMATS)
@floats
def test_memory_formats(name: str, dtype: torch.dtype) -> None:
    """Views lie among NaN, which shows where a kernel reads too much."""
    of_x, of_grad = FORMATS[name]
    with gpu_kernels():
        for sizes, arguments in FORMAT_CASES:
            conv, x = conv_and_input(sizes, {**arguments, "sparsity": 0.4}, dtype)
            check_layer(conv, of_x(x), of_grad(gradient_of(conv, x)))
            check_layer(conv, x[:1, :1, :, :1].expand_as(x), of_grad(gradient_of(conv, x)))


@dtypes
def test_patterns_from_empty_to_full(dtype: torch.dtype) -> None:
    conv, x = conv_and_input((9, 14, 3, (6, 7), 5), {"padding": 1}, dtype)
    with gpu_kernels():
        for nnz in (0, 1, 2, 14, conv.numel - 1, conv.numel):
            swap_pattern(conv, nnz, seed=nnz)
            check_layer(conv, x)
        crow = torch.tensor([0, 0, 0, 81, 81, 83] + [83] * 9, dtype=torch.int32)
        col = torch.tensor([*range(81), 0, 80], dtype=torch.int32)  # a full row, most are empty
        values = torch.randn(83, dtype=conv.weight_values.dtype)
        conv.replace_topology(*(t.to(DEVICE) for t in (crow, col, values)))
        check_layer(conv, x)


@pytest.mark.parametrize(
    "dilation, padding", [(9, 9), (1024, 1024), (12, 6), (2**30 - 8, 2**30 - 8)]
)
@pytest.mark.parametrize("slabs", [True, False])
def test_taps_that_meet_only_padding(dilation: int, padding: int, slabs: bool) -> None:
    """Their gradient is 0, though infinity is elsewhere."""
    kernel = 2 if padding < dilation else 3
    conv, x = conv_and_input(
        (5, 7, kernel, (3, 3), 5), {"padding": padding, "dilation": dilation, "sparsity": 0.4}
    )
    with gpu_kernels(device=None if slabs else Device(132, 16)):
        if dilation < 2**20:  # as far as torch goes in reasonable time
            check_layer(conv, x)
        y = conv(x)
        found = torch.autograd.grad(y, conv.weight_values, torch.full_like(y, torch.inf))[0]
    dead = conv.col_indices % kernel**2 != 4
    assert (found[dead] == 0).all() and not found[~dead].isfinite().any()


@pytest.mark.parametrize("bias", [True, False])
@dtypes
def test_no_images(dtype: torch.dtype, bias: bool) -> None:
    conv, x = conv_and_input((4, 6, 3, (5, 5), 1), {"padding": 1, "bias": bias}, dtype)
    with gpu_kernels():
        check_layer(conv, x[:0])


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 37), (129, 37), (5, 7, 130), (33, 150)])
@dtypes
def test_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    with gpu_kernels():
        for outputs in (1, 65):
            linear = SparseLinear(shape[-1], outputs, sparsity=0.8, dtype=weights).to(DEVICE)
            check_layer(linear, torch.randn(shape).to(DEVICE, dtype))
        if len(shape) == 2:
            check_layer(linear, torch.randn(shape[::-1]).to(DEVICE, dtype).t())


CHECKED = (torch.float32, torch.float64)
TYPE_PAIRS = [pair for pair in permutations(DTYPES, 2) if set(pair) != set(CHECKED)]


def to(argument, dtype: torch.dtype):
    floats = torch.is_tensor(argument) and argument.is_floating_point()
    return argument.to(dtype) if floats else argument


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
def test_padding_of_four_sizes(kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    """The op takes more than the module: zeros on any side, here as many as make P * Q = H * W."""
    topology = Topology.random((6, 4, *kernel), 20, device=DEVICE)
    pattern = topology.crow_indices, topology.col_indices
    x, values, bias = (torch.randn(s).to(DEVICE) for s in ((5, 4, 4, 6), 20, 6))
    for padding in ((0, 0, 0, 0), (0, 4, 0, 0), (0, 0, 0, 12), (1, 0, 2, 3), (0, 3, 4, 0)):
        args = (x, values, bias, *pattern, (6, 4, *kernel), stride, padding)
        with gpu_kernels():
            y = functional.sparse_conv2d(*args)
            same, exact = (reference.sparse_conv2d(*(to(a, d) for a in args)) for d in CHECKED)
        assert within_rule(y, same, exact), padding


@floats
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_go_where_they_belong(value: float, dtype: torch.dtype) -> None:
    conv, x = conv_and_input(*SHAPES["16 wide"], dtype)
    x[1, 0, 1, :] = value
    x[2, :, -1, -1] = value
    with gpu_kernels(), torch.no_grad():
        y = conv(x)
    expected = conv.cpu()(x.cpu().float())
    for test in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(test(y).cpu(), test(expected))
    assert not y.isfinite().all()


@pytest.mark.parametrize("of_x, of_grad", TYPE_PAIRS, ids=str)
def test_grad_weight_of_two_types(of_x: torch.dtype, of_grad: torch.dtype) -> None:
    values = torch.float64 if torch.float64 in (of_x, of_grad) else torch.float32
    conv, x = conv_and_input((5, 7, 3, (6, 5), 9), {"padding": 1}, values)
    x, grad = x.to(of_x), gradient_of(conv, x).to(of_grad)
    pattern = conv.crow_indices, conv.col_indices
    shape = ConvShape(conv.weight_shape, (1, 1), (1, 1, 1, 1), (1, 1), 1)
    with gpu_kernels():
        found = library.sparse_conv2d_grad_weight(x, grad, *pattern, shape, values)
        same, exact = (
            reference.sparse_conv2d_grad_weight(x.to(d), grad.to(d), *pattern, *shape)
            for d in CHECKED
        )
    assert found.dtype == values
    assert within_rule(found, same, exact)


def test_values_and_bias_that_are_not_contiguous() -> None:
    conv, x = conv_and_input((5, 6, 3, (6, 5), 9), {"padding": 1})
    values, bias = conv.weight_values.detach(), conv.bias.detach()
    apart = [torch.stack((t, t.new_full(t.shape, torch.nan)), 1)[:, 0] for t in (values, bias)]
    rest = conv.crow_indices, conv.col_indices, conv.weight_shape, (1, 1), (1,) * 4
    with gpu_kernels():
        assert torch.equal(functional.sparse_conv2d(x, *apart, *rest), conv(x).detach())


# ---- as ops and modules -------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_ops_agree_with_the_reference(last: bool) -> None:
    with gpu_kernels():
        check_against_the_reference(last, DEVICE)


@pytest.mark.parametrize(
    "dtype, last", list(zip(DTYPES, cycle((True, False)), strict=False)), ids=str
)
def test_opcheck(dtype: torch.dtype, last: bool) -> None:
    with gpu_kernels():
        check_opcheck(dtype, last, DEVICE)


@pytest.mark.parametrize("through_dispatcher", [False, True])
def test_gradients_of_gradients(through_dispatcher: bool) -> None:
    with gpu_kernels():
        check_derivatives(not through_dispatcher, DEVICE)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(low: torch.dtype) -> None:
    conv, x = conv_and_input(*SHAPES["16 wide, stride 2"])
    x, grad = x.requires_grad_(), gradient_of(conv, x).to(low)
    with gpu_kernels():
        with torch.autocast(DEVICE.type, low):
            y = conv(x)
        ours = [y.detach(), *torch.autograd.grad(y, (x, conv.weight_values, conv.bias), grad)]
        expected = results(conv, x.to(low), grad)
    expected[1] = expected[1].float()
    assert same_bits(ours, expected)
    assert y.dtype == low


@floats
def test_low_precision_has_the_bits_of_float32_rounded(dtype: torch.dtype) -> None:
    for name in ("56 wide", "7 wide", "stride 3", "blocks and stride", "1 x 1"):
        conv, x = conv_and_input(*SHAPES[name], dtype)
        x, grad = x[:9], gradient_of(conv, x[:9])
        with gpu_kernels():
            low, wide = results(conv, x, grad), results(conv, x.float(), grad.float())
        assert same_bits(low[:2], [t.to(dtype) for t in wide[:2]])
