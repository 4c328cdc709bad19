"""The native plans: which lanes suit what, and what is refused in which words."""

from __future__ import annotations

import pytest
import torch
from helpers.kernel_cases import ISAS, LANES, kernels
from helpers.nn_cases import layer

from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns


def arguments(conv, size: tuple[int, int], **change) -> dict:
    """Of a plan for a 3 x 3 layer with padding 1."""
    return {
        "out_channels": conv.out_channels,
        "in_channels": conv.in_channels,
        "height": size[0],
        "width": size[1],
        "kernel": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "out_size": size,
        "dilation": (1, 1),
        "groups": 1,
        "crow": conv.crow_indices.data_ptr(),
        "col": conv.col_indices.data_ptr(),
        "blocks": conv.nnz,
        "dtype": "float32",
        **change,
    }


@pytest.fixture
def conv():
    return layer(4, 6, 3, padding=1, sparsity=0.5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float64"},
        {"width": 65, "out_size": (5, 65)},
        {"stride": (1, 3), "out_size": (5, 2)},
        {"stride": (5, 1), "out_size": (1, 5)},
        {"dilation": (1, 9), "padding": (1, 9)},
    ],
    ids=["float64", "65 wide", "stride (1, 3)", "stride (5, 1)", "dilation 9"],
)
def test_lanes_row_says_what_it_needs(conv, isa: str, change: dict) -> None:
    pixels, columns = {"portable": (16, 3), "avx2": (32, 7), "avx512": (64, 15)}[isa]
    needs = (
        rf"lanes 'row': need float32, rows of at most {pixels} pixels, strides of at most \(4, 2\) "
        rf"and taps no further apart than {columns} columns"
    )
    with kernels(isa):
        for transposed in (False, True):
            wanted = {"lanes": "row", "transposed": transposed}
            with pytest.raises(ValueError, match=needs):
                _C.ConvPlan(**arguments(conv, (5, 5), **wanted, **change))
        _C.ConvPlan(**arguments(conv, (5, 5), lanes="row"))


@pytest.mark.parametrize("isa", ISAS)
def test_the_widest_row_an_instruction_set_takes(isa: str) -> None:
    conv = layer(4, 6, 3, padding=1, sparsity=0.5)
    widest = {"portable": 16, "avx2": 32, "avx512": 64}[isa]
    with kernels(isa):
        for transposed in (False, True):
            wanted = {"lanes": "row", "transposed": transposed}
            _C.ConvPlan(**arguments(conv, (5, widest), **wanted))
            with pytest.raises(ValueError, match="lanes 'row'"):
                _C.ConvPlan(**arguments(conv, (5, widest + 1), **wanted))


def test_unknown_lanes_are_refused_with_the_choices(conv) -> None:
    with pytest.raises(ValueError, match="expected 'plane', 'row', 'batch' or 'matrix', got"):
        _C.ConvPlan(**arguments(conv, (5, 5), lanes="sideways"))


@pytest.mark.parametrize("lanes", LANES)
def test_a_plan_runs_in_its_direction_only(conv, lanes: str) -> None:
    forward, transposed = (
        _C.ConvPlan(**arguments(conv, (5, 5), lanes=lanes, transposed=t)) for t in (False, True)
    )
    x, y = (torch.zeros(2, c, 5, 5) for c in (4, 6))
    x, y = ((t.data_ptr(), False, t.stride()) for t in (x, y))
    values, grad_values = conv.weight_values.data_ptr(), torch.zeros(conv.nnz)
    message = "sparse_conv2d_grad_input needs a plan made with transposed=True; sparse_conv2d and"
    with pytest.raises(ValueError, match=message):
        transposed.sparse_conv2d(2, x, values, 0, y, 1, 0)
    with pytest.raises(ValueError, match=message):
        transposed.sparse_conv2d_grad_weight(2, x, y, grad_values.data_ptr(), 1, 0)
    with pytest.raises(ValueError, match=message):
        forward.sparse_conv2d_grad_input(2, y, values, x, 1, 0)


def test_bfloat16_beside_float64_values_is_refused(conv) -> None:
    plan = _C.ConvPlan(**arguments(conv, (5, 5), dtype="float64"))
    x, y = (torch.zeros(2, c, 5, 5, dtype=torch.bfloat16) for c in (4, 6))
    x, y = ((t.data_ptr(), True, t.stride()) for t in (x, y))
    with pytest.raises(ValueError, match="bfloat16 activations need float32 values"):
        plan.sparse_conv2d(2, x, conv.weight_values.data_ptr(), 0, y, 1, 0)


def chosen(n: int, width: int, *, rows=True, kernel=3, stride=1, dtype="float32") -> str:
    pad = kernel // 2
    out = (width + 2 * pad - kernel) // stride + 1
    pair = (kernel, kernel), (stride, stride), (pad, pad), (1, 1)
    return _C.choose_lanes(n, rows, width, out, *pair, dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_chosen_lanes_can_be_planned(conv, isa: str) -> None:
    with kernels(isa):
        for n in (1, 3, 16, 100):
            for width in (1, 4, 7, 16, 33, 56, 64, 65, 224):
                for dtype in ("float32", "float64"):
                    lanes = chosen(n, width, dtype=dtype)
                    for transposed in (False, True):
                        change = {"lanes": lanes, "transposed": transposed, "dtype": dtype}
                        plan = _C.ConvPlan(**arguments(conv, (5, width), **change))
                        assert plan.describe()["lanes"] == lanes


def test_which_lanes_suit_what() -> None:
    with kernels("portable"):  # 4 lanes, which cannot be masked
        assert chosen(1, 16) == chosen(2, 16) == "plane"
        assert chosen(3, 16) == chosen(4, 16) == chosen(100, 16) == "batch"
        assert chosen(4, 16, kernel=1) == "plane"
        assert chosen(2, 16, dtype="float64") == "batch"


@pytest.mark.skipif("avx512" not in ISAS, reason="AVX-512 only")
def test_which_lanes_suit_what_on_avx512() -> None:
    with kernels("avx512"):
        assert chosen(1, 56) == chosen(100, 7) == chosen(16, 64, stride=2) == "row"
        assert chosen(16, 65) == chosen(16, 56, rows=False) == chosen(16, 65, stride=3) == "batch"
        assert chosen(9, 65) == chosen(8, 56, rows=False) == "plane"
        assert chosen(8, 56, dtype="float64") == "batch"
        assert chosen(4, 56, dtype="float64") == "plane"


def test_long_rows_hold_about_fourteen_wide_vectors() -> None:
    for pixels in (1, 7 * 7, 16, 32, 14 * 14, 56 * 56, 224 * 224, 16 * 31, 2**20, 16 * 27 * 29):
        height, width = _C.long_rows(pixels)
        assert height * width == pixels
        vectors, odd = divmod(pixels, 16)
        divisors = [d for d in range(1, vectors + 1) if vectors % d == 0]
        wanted = 16 * min(divisors, key=lambda d: abs(d - 14)) if not odd else pixels
        assert width == wanted


@pytest.mark.parametrize("lanes", LANES)
def test_a_plan_keeps_its_instruction_set(conv, lanes: str) -> None:
    """A switch leaves the plans that exist as they are: they still compute the same bits."""
    x = torch.randn(3, 4, 5, 6)
    with kernels(ISAS[-1], lanes), torch.no_grad():
        before = conv(x)
        _C.set_isa("portable")
        assert torch.equal(conv(x), before)
        assert len(patterns.plans()) == 1
