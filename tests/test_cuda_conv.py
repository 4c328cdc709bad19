"""The GPU's convolution kernels against torch in float64, under every tiling.

`-k small` picks what the emulator's thread sanitizer build runs in a reasonable time, and `-k "not
any_"` what its address sanitizer build does.
"""

from __future__ import annotations

import re
from itertools import cycle

import pytest
import torch
from cuda_conv_cases import (
    DTYPES,
    TWO,
    AtRandom,
    InTurn,
    conv_and_input,
    direct,
    gather_tilings,
    gpu_kernels,
    grad_weight_tilings,
)
from cuda_device import DEVICE, configure, emulated, kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import AWKWARD, BATCHES, CASES
from nn_cases import (
    check_layer,
    check_results,
    layer,
    results,
    same_bits,
    swap_pattern,
    within_rule,
)
from op_cases import check_against_the_reference, check_derivatives, check_opcheck
from test_conv_semantics import convolutions, image
from test_lanes import FORMAT_CASES, FORMATS, gradient_of

from dsr_kernels import SparseLinear, cuda_tiling, functional, reference
from dsr_kernels.cuda_tiling import Device
from dsr_kernels.topology import Topology

SHAPES = CASES | BATCHES | AWKWARD
TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "__nv_bfloat16",
    torch.float16: "__half",
}
FLOATS = (torch.float32, torch.bfloat16)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


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
        values = torch.randn(83, dtype=conv.values.dtype)
        conv.replace_topology(*(t.to(DEVICE) for t in (crow, col, values)))
        check_layer(conv, x)


@pytest.mark.parametrize("bias", [True, False])
@dtypes
def test_no_images(dtype: torch.dtype, bias: bool) -> None:
    conv, x = conv_and_input((4, 6, 3, (5, 5), 1), {"padding": 1, "bias": bias}, dtype)
    with gpu_kernels():
        check_layer(conv, x[:0])


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 37), (129, 37), (5, 7, 300), (130, 513)])
@dtypes
def test_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    with gpu_kernels():
        for outputs in (1, 65, 200):
            linear = SparseLinear(shape[-1], outputs, sparsity=0.8, dtype=weights).to(DEVICE)
            check_layer(linear, torch.randn(shape).to(DEVICE, dtype))
        if len(shape) == 2:
            check_layer(linear, torch.randn(shape[::-1]).to(DEVICE, dtype).t())


@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 3), (2, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 2)])
def test_padding_of_four_sizes(kernel: tuple[int, int], stride: tuple[int, int]) -> None:
    """The op takes more than the module: zeros on any side, here as many as make P * Q = H * W."""
    topology = Topology.random((6, 4, *kernel), 20, device=DEVICE)
    x, values, bias = (torch.randn(s).to(DEVICE) for s in ((5, 4, 4, 6), 20, 6))
    for padding in ((0, 0, 0, 0), (0, 4, 0, 0), (0, 0, 0, 12), (1, 0, 2, 3), (0, 3, 4, 0)):
        args = (x, values, bias, *topology, (6, 4, *kernel), stride, padding)
        with gpu_kernels():
            y = functional.sparse_conv2d(*args)
        same, exact = (reference.sparse_conv2d(*(to(a, d) for a in args)) for d in CHECKED)
        assert within_rule(y, same, exact), padding


CHECKED = (torch.float32, torch.float64)


def to(argument, dtype: torch.dtype):
    floats = torch.is_tensor(argument) and argument.is_floating_point()
    return argument.to(dtype) if floats else argument


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


# ---- as ops and modules -------------------------------------------------------------------------


@pytest.mark.parametrize("last", [False, True])
def test_ops_agree_with_the_reference(last: bool) -> None:
    with gpu_kernels():
        check_against_the_reference(last, DEVICE)


@pytest.mark.parametrize("dtype, last", zip(DTYPES, cycle((True, False)), strict=False), ids=str)
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
        ours = [y.detach(), *torch.autograd.grad(y, (x, conv.values, conv.bias), grad)]
        expected = results(conv, x.to(low), grad)
    expected[1] = expected[1].float()
    assert same_bits(ours, expected)
    assert y.dtype == low


@floats
def test_low_precision_has_the_bits_of_float32_rounded(dtype: torch.dtype) -> None:
    """Sums run over a channel's non-zeros in the pattern's order, in float32, however cut."""
    for name in ("56 wide", "7 wide", "stride 3", "blocks and stride", "1 x 1"):
        conv, x = conv_and_input(*SHAPES[name], dtype)
        grad = gradient_of(conv, x)
        with gpu_kernels():
            low, wide = results(conv, x, grad), results(conv, x.float(), grad.float())
        assert same_bits(low[:2], [t.to(dtype) for t in wide[:2]])


# ---- tilings ------------------------------------------------------------------------------------

# Between them: all numbers of warps side by side along channels, sets of channels that do not
# divide, groups, one class and several, several launches, taps that meet nothing.
TILED = {
    "many outputs": ((6, 70, 3, (5, 9), 9), {"padding": 1, "sparsity": 0.6}),
    "many channels, stride 2": ((70, 7, 3, (9, 8), 5), {"padding": 1, "stride": 2}),
    "groups, stride (2, 3)": (
        (12, 18, (3, 2), (8, 11), 13),
        {"padding": 1, "stride": (2, 3), "groups": 3, "sparsity": 0.3},
    ),
    "1 x 1, groups": ((20, 36, 1, (9, 11), 17), {"groups": 2, "sparsity": 0.3}),
}


@pytest.mark.parametrize("name", TILED)
@floats
def test_every_tiling(name: str, dtype: torch.dtype) -> None:
    """Those of the gathers give the same bits, too."""
    conv, x = conv_and_input(*TILED[name], dtype)
    grad = gradient_of(conv, x)
    with gpu_kernels():
        expected = results(conv, x, grad)
        check_results(conv, x, grad, expected, "cpu")
    gather, grad_weight = InTurn(gather_tilings), InTurn(grad_weight_tilings)
    number = 0
    while number <= max(gather.most, grad_weight.most):
        gather.number = grad_weight.number = number
        with gpu_kernels(gather, grad_weight, TWO):
            found = results(conv, x, grad)
        assert same_bits(found[:2], expected[:2]), number
        check_results(conv, x, grad, found, "cpu")
        number += 1
    assert number > 50


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kib", [16, 48])
def test_little_shared_memory(kib: int, name: str) -> None:
    """Slabs of a channel or two, and none at all where kernels reach far."""
    conv, x = conv_and_input(*CASES[name])
    with gpu_kernels(device=Device(2, kib << 10)):
        check_layer(conv, x[:9])


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    case=convolutions(),
    dtype=st.sampled_from(DTYPES),
    formats=st.sampled_from(sorted(FORMATS)),
    kib=st.sampled_from((8, 48, 227)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_tiling(case, dtype, formats: str, kib: int, seed: int) -> None:
    arguments, shape, sparsity = case
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    conv = layer(**arguments, sparsity=sparsity, dtype=weights).to(DEVICE)
    x = image(*shape).to(DEVICE, dtype)
    of_x, of_grad = FORMATS[formats]
    grad = of_grad(gradient_of(conv, x))
    chosen = AtRandom(seed)
    configure(seed=seed)
    with gpu_kernels(chosen.gather, chosen.grad_weight, Device(2, kib << 10)):
        check_layer(conv, of_x(x), grad)
