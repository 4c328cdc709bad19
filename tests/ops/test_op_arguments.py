"""What the layers and the raw ops refuse, and in which words."""

from __future__ import annotations

import pytest
import torch
from helpers.nn_cases import layer
from helpers.op_cases import OPS, grad_like_output, problem

from dsr_kernels import SparseLinear
from dsr_kernels.nn import functional
from dsr_kernels.ops import autograd


@pytest.mark.parametrize(
    "x, error, message",
    [
        (
            torch.zeros(8, 32, 16, 16),
            ValueError,
            r"SparseConv2d: expected input with 64 channels, got 32 \(shape \(8, 32, 16, 16\)\)",
        ),
        (torch.zeros(2, 64, 2, 9), ValueError, "padded input of at least 3 x 3.*got 2 x 9"),
        (torch.zeros(2, 64, 0, 9), ValueError, "padded input of at least 3 x 3"),
        (torch.zeros(5, 5), ValueError, "expected a 3-D .* or 4-D .* input, got shape"),
        (torch.zeros(2, 64, 9, 9).double(), TypeError, "expected input of dtype torch.float32"),
        (torch.zeros(2, 64, 9, 9).int(), TypeError, "got torch.int32"),
        (
            torch.zeros(2, 64, 9, 9, device="meta"),
            ValueError,
            "on one device, got input on meta, values on cpu, bias on cpu, crow_indices on cpu, "
            "col_indices on cpu",
        ),
    ],
)
def test_refuses_wrong_input(x, error, message):
    with pytest.raises(error, match=message):
        layer(64, 32, 3)(x)


def test_wrong_channels_are_named_before_padding():
    with pytest.raises(ValueError, match=r"with 4 channels, got 3 \(shape \(1, 3, 5, 5\)"):
        layer(4, 4, 3, padding=1, padding_mode="reflect")(torch.zeros(1, 3, 5, 5))


def test_linear_refuses_wrong_input():
    linear = SparseLinear(8, 4)
    with pytest.raises(ValueError, match=r"SparseLinear: expected input with 8 features, got 7"):
        linear(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="got a scalar"):
        linear(torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"SparseLinear: expected input of dtype torch.float32"):
        linear(torch.zeros(3, 8, dtype=torch.float64))


def test_low_precision_weights_say_what_to_do():
    conv = layer(4, 4, 3).half()
    with pytest.raises(TypeError, match=r"values must be float32 or float64.*torch\.autocast"):
        conv(torch.zeros(1, 4, 5, 5).half())


def test_raw_ops_refuse_what_would_read_out_of_bounds():
    x, values, bias, crow, col, shape = problem(requires_grad=False)
    cases = {
        "one value per column": (x, values[:-1], bias, crow, col, *shape),
        "bias of shape": (x, values, bias[:-1], crow, col, *shape),
        "crow_indices of shape": (x, values, bias, crow[:-1], col, *shape),
        "int32": (x, values, bias, crow.long(), col, *shape),
        "contiguous crow": (x, values, bias, crow, col.repeat_interleave(2)[::2], *shape),
        "6 channels": (x[:, :5], values, bias, crow, col, *shape),
        "stride and dilation": (x, values, bias, crow, col, shape[0], (0, 1), *shape[2:]),
        "groups to divide": (x[:, :9], values, bias, crow, col, *shape[:-1], 3),
    }
    for message, args in cases.items():
        if message == "groups to divide":
            args = (torch.zeros(2, 9, 5, 4, dtype=torch.float64), *args[1:])
        with pytest.raises((ValueError, TypeError), match=message):
            OPS.sparse_conv2d(*args)
    with pytest.raises(ValueError, match="expected gradient of shape"):
        OPS.sparse_conv2d_grad_weight(x, x, crow, col, *shape, torch.float64)


def test_raw_gradients_refuse_what_would_read_out_of_bounds():
    x, values, bias, crow, col, shape = problem(requires_grad=False)
    grad = grad_like_output(x, values, bias, crow, col, shape)
    size, wide = tuple(x.shape[1:]), torch.zeros(2, 12, 5, 4, dtype=torch.float64)
    for message, args in {
        "the input's batch size 2, got 1": (x, grad[:1]),
        "the input's batch size 2, got 3": (x, torch.cat([grad, grad[:1]])),
        "on one device, got input on cpu, gradient on meta": (x, grad.to("meta")),
        "6 channels": (wide, grad),
    }.items():
        with pytest.raises(ValueError, match=message):
            autograd.sparse_conv2d_grad_weight(*args, crow, col, shape, torch.float64)
    for message, input_size, groups in (
        ("groups to divide out_channels, got groups=0", size, 0),
        ("groups to divide out_channels, got groups=8", (24, 5, 4), 8),
        ("groups to divide out_channels, got groups=3", (9, 5, 4), 3),
        (r"input_size \(6, H, W\), got \(5, 5, 4\)", (5, 5, 4), 2),
        (r"input_size \(12, H, W\), got \(6, 5, 4\)", size, 4),
    ):
        other = shape._replace(groups=groups)
        with pytest.raises(ValueError, match=message):
            autograd.sparse_conv2d_grad_input(grad, values, crow, col, input_size, other, False)
        with pytest.raises(ValueError, match=message):
            OPS.sparse_conv2d_grad_input(grad, values, crow, col, input_size, *other, False)


@pytest.mark.parametrize(
    "wrong", [(4, 0, 3, 2), (4, 3, 0, 2), (4, 3, 3, -2), (0, 3, 3, 2), (-4, -3, 3, 2), (4, 3)]
)
def test_weight_shapes_without_elements_are_refused(wrong):
    x, values, bias, crow, col, shape = problem(requires_grad=False)
    grad = grad_like_output(x, values, bias, crow, col, shape)
    shape = (wrong, *shape[1:])
    for call in (
        lambda: functional.sparse_conv2d(x, values, bias, crow, col, *shape),
        lambda: OPS.sparse_conv2d(x, values, bias, crow, col, *shape),
        lambda: OPS.sparse_conv2d_grad_input(grad, values, crow, col, (6, 5, 4), *shape, False),
        lambda: OPS.sparse_conv2d_grad_weight(x, grad, crow, col, *shape, torch.float64),
    ):
        with pytest.raises(ValueError, match="expected weight_shape"):
            call()


@pytest.mark.parametrize("wrong", [(0, 8), (4, 0), (-4, 8), (4, -8), (4, 8, 1, 1)])
def test_linear_refuses_weight_shapes_without_elements(wrong):
    crow, col = torch.zeros(max(wrong[0], 0) + 1).int(), torch.zeros(0).int()
    x = torch.zeros(3, max(wrong[1], 0))
    with pytest.raises(ValueError, match=r"SparseLinear: expected weight_shape \(O, I\)"):
        functional.sparse_linear(x, torch.zeros(0), None, crow, col, wrong)


def test_native_code_refuses_patterns_out_of_range():
    x, values, bias, crow, col, shape = problem(requires_grad=False)
    bad_col = col.clone()
    bad_col[3] = 10_000
    bad_crow = crow.clone()
    bad_crow[1] = 1000
    for pattern in ((crow, bad_col), (bad_crow, col)):
        with pytest.raises((ValueError, RuntimeError)):
            OPS.sparse_conv2d(x, values, bias, *pattern, *shape)
