"""The ops under torch's own checks, the ways they are called, and their argument checks."""

from __future__ import annotations

import pytest
import torch
from nn_cases import layer
from torch.autograd import gradcheck, gradgradcheck

from dsr_kernels import SparseConv2d, SparseLinear, gradients, ops, reference
from dsr_kernels.topology import Topology

OPS = torch.ops.dsr_kernels


def problem(dtype=torch.float64, last=False, requires_grad=True):
    """x, values, bias, crow, col and the shape arguments of a small awkward convolution."""
    generator = torch.Generator().manual_seed(0)
    topology = Topology.random((4, 3, 3, 2), 20, generator=generator)
    x = torch.randn(2, 6, 5, 4, dtype=dtype, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    values = torch.randn(20, dtype=dtype, generator=generator)
    bias = torch.randn(4, dtype=dtype, generator=generator)
    for t in (x, values, bias):
        t.requires_grad_(requires_grad)
    shape = ((4, 3, 3, 2), (2, 1), (1, 0, 1, 2), (1, 2), 2)
    return x, values, bias, topology.crow_indices, topology.col_indices, shape


def grad_like_output(x, values, bias, crow, col, shape):
    with torch.no_grad():
        y = OPS.sparse_conv2d(x, values, bias, crow, col, *shape)
    return torch.randn_like(y).requires_grad_(x.requires_grad)


@pytest.mark.parametrize("last", [False, True])
def test_ops_agree_with_the_reference(last):
    x, values, bias, crow, col, shape = problem(last=last, requires_grad=False)
    y = OPS.sparse_conv2d(x, values, bias, crow, col, *shape)
    torch.testing.assert_close(y, reference.sparse_conv2d(x, values, bias, crow, col, *shape))
    grad = torch.randn_like(y)
    gx = OPS.sparse_conv2d_grad_input(grad, values, crow, col, x.shape[1:], *shape, last)
    expected = reference.sparse_conv2d_grad_input(grad, values, crow, col, x.shape[1:], *shape)
    torch.testing.assert_close(gx, expected)
    gvalues = OPS.sparse_conv2d_grad_weight(x, grad, crow, col, *shape, torch.float64)
    expected = reference.sparse_conv2d_grad_weight(x, grad, crow, col, *shape)
    torch.testing.assert_close(gvalues, expected)
    gbias = OPS.sparse_conv2d_grad_bias(grad, torch.float64)
    torch.testing.assert_close(gbias, reference.sparse_conv2d_grad_bias(grad))


@pytest.mark.parametrize(
    "dtype, last", [(torch.float32, False), (torch.float64, True), (torch.bfloat16, True)]
)
def test_opcheck(dtype, last):
    weights = torch.float32 if dtype == torch.bfloat16 else dtype
    x, values, bias, crow, col, shape = problem(weights, last)
    x = x.detach().to(dtype).requires_grad_()
    grad = grad_like_output(x, values, bias, crow, col, shape)
    torch.library.opcheck(OPS.sparse_conv2d, (x, values, bias, crow, col, *shape))
    torch.library.opcheck(OPS.sparse_conv2d, (x, values, None, crow, col, *shape))
    args = (grad, values, crow, col, x.shape[1:], *shape, last)
    torch.library.opcheck(OPS.sparse_conv2d_grad_input, args)
    args = (x, grad, crow, col, *shape, weights)
    torch.library.opcheck(OPS.sparse_conv2d_grad_weight, args)
    torch.library.opcheck(OPS.sparse_conv2d_grad_bias, (grad, weights))


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatcher"])
def test_gradcheck_to_second_order(direct):
    x, values, bias, crow, col, shape = problem()
    conv = gradients.conv if direct else OPS.sparse_conv2d
    grad_input = gradients.grad_input if direct else OPS.sparse_conv2d_grad_input
    grad_weight = gradients.grad_weight if direct else OPS.sparse_conv2d_grad_weight
    grad = grad_like_output(x, values, bias, crow, col, shape)

    def forward(x, values, bias):
        return conv(x, values, bias, crow, col, *shape)

    def backward_x(grad, values):
        return grad_input(grad, values, crow, col, x.shape[1:], *shape, False)

    def backward_w(x, grad):
        return grad_weight(x, grad, crow, col, *shape, torch.float64)

    assert gradcheck(forward, (x, values, bias), fast_mode=not direct)
    assert gradcheck(backward_x, (grad, values), fast_mode=True)
    assert gradcheck(backward_w, (x, grad), fast_mode=True)
    assert gradgradcheck(forward, (x, values, bias), fast_mode=True)


def test_gradcheck_of_the_layers():
    conv = layer(4, 6, (3, 2), stride=(1, 2), padding="valid", groups=2, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: conv(x), (x, conv.values, conv.bias))
    linear = SparseLinear(7, 5, sparsity=0.6, dtype=torch.float64)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: linear(x), (x, linear.values, linear.bias))


def test_only_what_is_asked_for_is_computed():
    x, values, bias, crow, col, shape = problem()
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        tensors = [
            t.detach().requires_grad_(w) for t, w in zip((x, values, bias), wanted, strict=True)
        ]
        gradients.conv(*tensors, crow, col, *shape).sum().backward()
        assert tuple(t.grad is not None for t in tensors) == wanted


def test_direct_calls_and_the_dispatcher_agree():
    x, values, bias, crow, col, shape = problem()
    direct = gradients.conv(x, values, bias, crow, col, *shape)
    dispatched = OPS.sparse_conv2d(x, values, bias, crow, col, *shape)
    assert torch.equal(direct, dispatched)
    both = [torch.autograd.grad(y.sum(), (x, values, bias)) for y in (direct, dispatched)]
    assert all(torch.equal(a, b) for a, b in zip(*both, strict=True))


def test_dispatch_modes_fake_tensors_and_tracing_see_the_op():
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    conv, x = layer(4, 6, 3), torch.randn(1, 4, 5, 5)

    class Recorder(TorchDispatchMode):
        seen = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.seen += (func,)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Recorder() as recorder:
        conv(x)
    assert OPS.sparse_conv2d.default in recorder.seen
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert conv(mode.from_tensor(x)).shape == (1, 6, 3, 3)
    graph = make_fx(conv)(x)
    assert any(node.target is OPS.sparse_conv2d.default for node in graph.graph.nodes)
    with torch.no_grad():
        traced = torch.jit.trace(conv, x, check_trace=False)
        other = torch.randn(1, 4, 5, 5)
        assert torch.equal(traced(other), conv(other))


def test_meta_tensors():
    conv = SparseConv2d(4, 6, 3, device="meta")
    y = conv(torch.empty(2, 4, 8, 8, device="meta"))
    assert y.shape == (2, 6, 6, 6)
    assert y.is_meta


def test_functorch_gives_right_numbers_or_an_error():
    conv, x = layer(4, 6, 3), torch.randn(5, 4, 5, 5)
    try:
        y = torch.vmap(conv)(x)
    except (RuntimeError, NotImplementedError):
        pass
    else:
        torch.testing.assert_close(y, conv(x))
    try:
        gx = torch.func.grad(lambda x: conv(x).square().sum())(x)
    except (RuntimeError, NotImplementedError):
        pass
    else:
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(gx, torch.autograd.grad(conv(leaf).square().sum(), leaf)[0])


# --- argument checks ---


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
        (torch.zeros(2, 64, 9, 9, device="meta"), ValueError, "input is on meta, the pattern"),
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


def test_other_devices_are_refused_in_words():
    class Elsewhere:
        device = torch.device("cuda:0")

    with pytest.raises(NotImplementedError, match="CPU kernels only"):
        ops._check_pattern("SparseConv2d", Elsewhere(), None, None, 3)


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


def test_native_code_refuses_patterns_out_of_range():
    x, values, bias, crow, col, shape = problem(requires_grad=False)
    bad_col = col.clone()
    bad_col[3] = 10_000
    bad_crow = crow.clone()
    bad_crow[1] = 1000
    for pattern in ((crow, bad_col), (bad_crow, col)):
        with pytest.raises((ValueError, RuntimeError)):
            OPS.sparse_conv2d(x, values, bias, *pattern, *shape)
