"""Every op on the GPU against torch in float64 on the CPU, under the project's tolerance rule."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from helpers.convolutions import convolutions, image
from helpers.formats import FORMAT_CASES, FORMATS, gradient_of
from helpers.matrix_units import round_weights
from helpers.nn_cases import check_layer, layer, swap_pattern
from helpers.op_cases import check_against_the_reference, check_derivatives, check_opcheck
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels import SparseConv2d, SparseLinear

from .cases import DTYPES, LARGE, SMALL, TINY, on_device
from .device import DEVICE, ON_CUDA

pytestmark = pytest.mark.gpu
FLOATS = (torch.float32, torch.bfloat16)
OTHERS = (torch.float64, torch.float64, torch.float16)
BLOCK_TYPES = (torch.bfloat16, torch.float32, torch.float16, torch.bfloat16, torch.float64)
LAST = {"memory_format": torch.channels_last}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.mark.sanitizer
@pytest.mark.parametrize("name", TINY)
@floats
def test_tiny(name: str, dtype: torch.dtype) -> None:
    conv, x = on_device(name, dtype)
    check_layer(conv, x[:9])


@pytest.mark.parametrize("name", SMALL)
@floats
def test_convolutions(name: str, dtype: torch.dtype) -> None:
    conv, x = on_device(name, dtype)
    for of in FORMATS["NCHW"][0], FORMATS["channels_last"][0]:
        check_layer(conv, of(x), of(gradient_of(conv, x)))


@pytest.mark.parametrize("dtype, name", list(zip(cycle(OTHERS), SMALL, strict=False)), ids=str)
def test_convolutions_in_float64_and_float16(dtype: torch.dtype, name: str) -> None:
    check_layer(*on_device(name, dtype))


def round_for_the_cpu(conv: SparseConv2d, dtype: torch.dtype) -> None:
    """Without a GPU the CPU's kernels run, which round weights of blocks of 16."""
    if not ON_CUDA:
        round_weights(conv, dtype)


@pytest.mark.parametrize("name, dtype", list(zip(SMALL, cycle(BLOCK_TYPES), strict=False)), ids=str)
@pytest.mark.parametrize("size", [4, 16])
def test_blocks(name: str, dtype: torch.dtype, size: int) -> None:
    conv, x = on_device(name, dtype, block_size=size)
    round_for_the_cpu(conv, dtype)
    check_layer(conv, x)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("size", [4, 16])
def test_large_convolutions_in_blocks(name: str, size: int) -> None:
    conv, x = on_device(name, torch.bfloat16, LARGE, size)
    round_for_the_cpu(conv, torch.bfloat16)
    check_layer(conv, x, device=DEVICE)


@pytest.mark.parametrize("name", LARGE)
@floats
def test_large_convolutions(name: str, dtype: torch.dtype) -> None:
    """torch computes these on the same device, in float64 for the exact result."""
    conv, x = on_device(name, dtype, LARGE)
    check_layer(conv, x, device=DEVICE)
    check_layer(conv, x.to(**LAST), device=DEVICE)


@pytest.mark.parametrize("name", FORMATS)
@dtypes
def test_memory_formats(name: str, dtype: torch.dtype) -> None:
    """Views lie among NaN, which shows where a kernel reads too much."""
    of_x, of_grad = FORMATS[name]
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    for (c, o, kernel, size, n), arguments in FORMAT_CASES:
        conv = layer(c, o, kernel, sparsity=0.4, dtype=weights, **arguments).to(DEVICE)
        x = of_x(torch.randn(n, c, *size).to(DEVICE, dtype))
        check_layer(conv, x, of_grad(gradient_of(conv, x)))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(case=convolutions(), dtype=st.sampled_from(DTYPES), last=st.booleans())
def test_any_shape(case, dtype: torch.dtype, last: bool) -> None:
    arguments, shape, sparsity = case
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    conv = layer(**arguments, sparsity=sparsity, dtype=weights).to(DEVICE)
    x = image(*shape).to(DEVICE, dtype)
    check_layer(conv, x.contiguous(memory_format=torch.channels_last) if last else x)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes(mode: str) -> None:
    conv = layer(3, 4, (4, 3), padding="same", padding_mode=mode, dilation=(1, 2)).to(DEVICE)
    check_layer(conv, image(2, 3, 8, 7).to(DEVICE))


def test_unbatched_input() -> None:
    conv, x = layer(4, 6, 3, padding=1).to(DEVICE), image(1, 4, 5, 7).to(DEVICE)
    assert torch.equal(conv(x[0]), conv(x)[0])


@dtypes
def test_patterns_from_empty_to_full(dtype: torch.dtype) -> None:
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    conv = layer(9, 14, 3, padding=1, dtype=weights).to(DEVICE)
    x = image(5, 9, 6, 7).to(DEVICE, dtype)
    for nnz in (0, 1, 2, 14, conv.numel - 1, conv.numel):
        swap_pattern(conv, nnz, seed=nnz)
        check_layer(conv, x)
    crow = torch.tensor([0, 0, 0, 81, 81, 83] + [83] * 9, dtype=torch.int32)
    col = torch.tensor([*range(81), 0, 80], dtype=torch.int32)  # one full row, most of them empty
    values = torch.randn(83, dtype=weights)
    conv.replace_topology(*(t.to(DEVICE) for t in (crow, col, values)))
    check_layer(conv, x)


@pytest.mark.parametrize("nnz", [0, 40])
@dtypes
def test_no_images(dtype: torch.dtype, nnz: int) -> None:
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    conv = SparseConv2d(4, 6, 3, padding=1, nnz=nnz, dtype=weights, device=DEVICE)
    x = torch.empty(0, 4, 5, 5, device=DEVICE, dtype=dtype, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad.shape == x.shape
    assert conv.weight_values.grad.eq(0).all() and conv.bias.grad.eq(0).all()


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 37), (129, 37), (5, 7, 300), (512, 1024)])
@dtypes
def test_linear(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    for outputs in (1, 65, 1024):
        linear = SparseLinear(shape[-1], outputs, sparsity=0.8, dtype=weights).to(DEVICE)
        x = torch.randn(shape).to(DEVICE, dtype)
        check_layer(linear, x)
    if len(shape) == 2:
        check_layer(linear, torch.randn(shape[::-1]).to(DEVICE, dtype).t())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@floats
def test_nan_and_infinity_go_where_they_belong(value: float, dtype: torch.dtype) -> None:
    conv, x = on_device("16 wide", dtype)
    x[1, 0, 1, :] = value
    x[2, :, -1, -1] = value
    with torch.no_grad():
        y = conv(x)
    expected = conv.cpu()(x.cpu().float())
    for test in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(test(y).cpu(), test(expected))
    assert not y.isfinite().all()


@pytest.mark.parametrize("last", [False, True])
def test_ops_agree_with_the_reference(last: bool) -> None:
    """The raw ops, with asymmetric padding."""
    check_against_the_reference(last, DEVICE)


@pytest.mark.parametrize(
    "dtype, last",
    [(torch.float32, False), (torch.float64, True), (torch.bfloat16, True), (torch.float16, False)],
)
def test_opcheck(dtype: torch.dtype, last: bool) -> None:
    check_opcheck(dtype, last, DEVICE)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatcher"])
def test_gradcheck_to_second_order(direct: bool) -> None:
    check_derivatives(direct, DEVICE)
