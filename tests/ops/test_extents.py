"""Sizes that no 32 bits hold are refused before anything is computed of them."""

from __future__ import annotations

import pytest
import torch
from helpers.kernel_cases import kernels
from helpers.nn_cases import check_layer
from helpers.op_cases import OPS, grad_like_output, problem

from dsr_kernels import SparseConv1d, SparseConv2d, SparseLinear
from dsr_kernels.backends.native import _C
from dsr_kernels.backends.patterns import patterns
from dsr_kernels.nn import functional
from dsr_kernels.ops import autograd

LARGE = (2**31, 2**40, 2**62, 6148914691236517204, 2**70)
LIMIT = r"at most 2\^31 - 1"


@pytest.mark.parametrize("size", LARGE)
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize("kind", [SparseConv1d, SparseConv2d])
def test_layers_refuse_huge_sizes(kind, name: str, size: int) -> None:
    sizes = {"stride": 1, "padding": 0, "dilation": 1, name: size}
    if name == "dilation":
        sizes["padding"] = size  # so that the kernel fits
    layer = kind(1, 1, 2, **sizes, sparsity=0.0)
    with pytest.raises(ValueError, match=rf"{kind.__name__[:-2]}.d: expected .* of {LIMIT}, got"):
        layer(torch.ones(1, 1, *[3] * kind.dims))


def test_the_call_that_ended_the_process() -> None:
    """Its products passed 64 bits."""
    layer = SparseConv2d(
        *(1, 1, 2),
        padding=(2, 3074457345618258602),
        dilation=(4, 6148914691236517204),
        sparsity=0.0,
    )
    with pytest.raises(ValueError, match=f"expected dilation of {LIMIT}, got 6148914691236517204"):
        layer(torch.ones(1, 1, 1, 1))


def test_the_largest_sizes_that_are_taken_compute_what_torch_does() -> None:
    """Of a kernel of two taps, one lies 2^31 - 2 pixels from the other."""
    far = 2**31 - 2
    layer = SparseConv2d(1, 2, (1, 2), padding=(0, far // 2), dilation=(1, far), sparsity=0.0)
    x = torch.randn(3, 1, 2, 1, requires_grad=True)
    y = layer(x)
    assert y.shape == (3, 2, 2, 1) and torch.equal(y, layer.bias.view(1, 2, 1, 1).expand_as(y))
    gx, gw = torch.autograd.grad(y.sum(), (x, layer.weight_values))
    assert not gx.any() and not gw.any()


def test_inputs_that_are_expanded_beyond_the_limit_are_refused() -> None:
    layer = SparseConv2d(1, 1, 1, stride=2**30, sparsity=0.0)
    with pytest.raises(ValueError, match=rf"width of the padded input of {LIMIT}, got 2147483648"):
        layer(torch.ones(1, 1, 1, 1).expand(1, 1, 1, 2**31))
    with pytest.raises(ValueError, match="convolution too large: an image of it takes"):
        layer(torch.ones(1, 1, 1, 1).expand(1, 1, 2**30, 2**30))


def test_the_raw_ops_refuse_huge_sizes() -> None:
    x, values, bias, crow, col, shape = problem(requires_grad=False)
    grad = grad_like_output(x, values, bias, crow, col, shape)
    size = tuple(x.shape[1:])
    for change in (
        {"stride": (2**31, 1)},
        {"padding": (0, 0, 2**40, 0)},
        {"dilation": (1, 2**62), "padding": (0, 0, 2**62, 0)},
        {"weight_shape": (4, 3, 2**31, 2)},
    ):
        wrong = shape._replace(**change)
        for call in (
            lambda s: OPS.sparse_conv2d(x, values, bias, crow, col, *s),
            lambda s: OPS.sparse_conv2d_grad_input(grad, values, crow, col, size, *s, False),
            lambda s: OPS.sparse_conv2d_grad_weight(x, grad, crow, col, *s, torch.float64),
            lambda s: autograd.sparse_conv2d(x, values, bias, crow, col, s),
            lambda s: functional.sparse_conv2d(x, values, bias, crow, col, *s),
        ):
            with pytest.raises(ValueError, match=r"2\^31 - 1"):
                call(wrong)


def test_linear_layers_refuse_huge_weights() -> None:
    with pytest.raises(ValueError, match="weight_shape: a row of"):
        SparseLinear(2**31, 1, nnz=1)
    crow, col = torch.zeros(2).int(), torch.zeros(0).int()
    x = torch.ones(1, 1).expand(1, 2**31)
    with pytest.raises(ValueError, match="expected a weight of at most"):
        functional.sparse_linear(x, torch.zeros(0), None, crow, col, (1, 2**31))


@pytest.mark.parametrize("lanes", ["plane", "row", "batch"])
@pytest.mark.parametrize("transposed", [False, True])
def test_the_native_core_refuses_them_by_itself(lanes: str, transposed: bool) -> None:
    """Whatever its caller has checked."""
    crow, col = torch.tensor([0, 1]).int(), torch.tensor([0]).int()
    right = {
        **{"out_channels": 1, "in_channels": 1, "height": 4, "width": 4, "out_size": (4, 4)},
        **{"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1},
    }
    pattern = {"crow": crow.data_ptr(), "col": col.data_ptr(), "blocks": 1, "dtype": "float32"}
    plan = {**pattern, "lanes": lanes, "transposed": transposed}
    _C.ConvPlan(**right, **plan)
    for name, value in right.items():
        for large in (2**31, 2**62, 2**63 - 1):
            wrong = large if isinstance(value, int) else (value[0], large)
            with pytest.raises(ValueError, match=r"at most|divide|too large"):
                _C.ConvPlan(**{**right, name: wrong}, **plan)
    largest, half = 2**31 - 1, 2**30 - 1
    for sizes in (
        {"height": largest, "width": largest, "out_size": (largest, largest)},
        {"dilation": (half, half), "padding": (half, half)},
        {"in_channels": 2**27, "height": 2**20, "width": 2**20},
    ):
        with pytest.raises(ValueError, match=r"too large|lanes 'row'"):
            _C.ConvPlan(**{**right, **sizes}, **plan)


@pytest.mark.parametrize("size", [2**31, 2**62])
def test_choosing_lanes_refuses_them(size: int) -> None:
    pair = (3, 3), (1, 1), (1, 1), (1, 1)
    with pytest.raises(ValueError, match="at most"):
        _C.choose_lanes(1, True, size, 4, *pair, "float32")
    assert _C.choose_lanes(size, True, 65, 65, *pair, "float32")


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("lanes", ["plane", "batch"])
@pytest.mark.parametrize("stride", [40, 100_000, 2**31 - 1])
@pytest.mark.parametrize("n", [1, 16])
def test_strides_beyond_the_image_cost_no_more_than_its_pixels(isa, lanes, stride, n) -> None:
    """Only phases that a tap reads are planned, of classes only those that have pixels."""
    layer = SparseConv2d(2, 3, 3, stride=stride, padding=1, sparsity=0.3, dtype=torch.float64)
    x = torch.randn(n, 2, 41, 40, dtype=torch.float64)
    with kernels(isa, lanes):
        check_layer(layer, x)
        plans = [plan.describe() for plan in patterns.plans() if isinstance(plan, _C.ConvPlan)]
    assert plans and all(plan["phases"] <= 9 for plan in plans)
    assert all(plan["classes"] <= 42 * 41 for plan in plans)


@pytest.mark.parametrize("lanes", ["plane", "batch"])
def test_taps_far_apart_compute_what_torch_does(lanes: str) -> None:
    """Rows between them are no part of what is planned."""
    layer = SparseConv2d(1, 2, 3, padding=300, dilation=300, sparsity=0.2, dtype=torch.float64)
    with kernels(_C.isa(), lanes):
        check_layer(layer, torch.randn(2, 1, 310, 305, dtype=torch.float64))
