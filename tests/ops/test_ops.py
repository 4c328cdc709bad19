"""The ops under torch's own checks, and the ways they are called."""

from __future__ import annotations

import pytest
import torch
from helpers.nn_cases import layer
from helpers.op_cases import (
    OPS,
    check_against_the_reference,
    check_derivatives,
    check_opcheck,
    problem,
)
from torch.autograd import forward_ad, gradcheck

from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.ops import autograd, reference


@pytest.mark.parametrize("last", [False, True])
def test_ops_agree_with_the_reference(last):
    check_against_the_reference(last)


@pytest.mark.parametrize(
    "dtype, last", [(torch.float32, False), (torch.float64, True), (torch.bfloat16, True)]
)
def test_opcheck(dtype, last):
    check_opcheck(dtype, last)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatcher"])
def test_gradcheck_to_second_order(direct):
    check_derivatives(direct)


def test_gradcheck_of_the_layers():
    conv = layer(4, 6, (3, 2), stride=(1, 2), padding="valid", groups=2, dtype=torch.float64)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: conv(x), (x, conv.weight_values, conv.bias))
    linear = SparseLinear(7, 5, sparsity=0.6, dtype=torch.float64)
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda x, *_: linear(x), (x, linear.weight_values, linear.bias))


def test_only_what_is_asked_for_is_computed():
    x, values, bias, crow, col, shape = problem()
    for wanted in ((True, False, False), (False, True, False), (False, False, True)):
        tensors = [
            t.detach().requires_grad_(w) for t, w in zip((x, values, bias), wanted, strict=True)
        ]
        autograd.sparse_conv2d(*tensors, crow, col, shape).sum().backward()
        assert tuple(t.grad is not None for t in tensors) == wanted


def test_direct_calls_and_the_dispatcher_agree():
    x, values, bias, crow, col, shape = problem()
    direct = autograd.sparse_conv2d(x, values, bias, crow, col, shape)
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


@pytest.mark.parametrize("which", range(3), ids=["input", "values", "bias"])
def test_lazily_negated_tensors_are_read_with_their_sign(which):
    x, *weights, crow, col, shape = problem(requires_grad=False)
    args = [x, *weights]
    expected = reference.sparse_conv2d(
        *(-a if i == which else a for i, a in enumerate(args)), crow, col, *shape
    )
    args[which] = torch._neg_view(args[which])
    torch.testing.assert_close(autograd.sparse_conv2d(*args, crow, col, shape), expected)


@pytest.mark.parametrize("which", range(5), ids=["input", "values", "bias", "crow", "col"])
def test_a_subclass_in_any_place_sees_the_op(which):
    seen = []

    class Recording(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            seen.append(func)
            return super().__torch_function__(func, types, args, kwargs or {})

    *args, shape = problem(requires_grad=False)
    args[which] = args[which].as_subclass(Recording)
    y = autograd.sparse_conv2d(*args, shape)
    assert OPS.sparse_conv2d.default in seen
    assert type(y) is Recording


@pytest.mark.parametrize("which", range(3), ids=["input", "values", "bias"])
@pytest.mark.parametrize("requires_grad", [True, False])
def test_forward_mode_gradients_are_refused_not_lost(which, requires_grad):
    x, values, bias, crow, col, shape = problem(requires_grad=requires_grad)
    args = [x, values, bias]

    def of_one(tensor):
        tensors = *args[:which], tensor, *args[which + 1 :]
        return autograd.sparse_conv2d(*tensors, crow, col, shape)

    tangent = torch.ones_like(args[which])
    with pytest.raises(NotImplementedError, match="forward-mode AD"):
        torch.func.jvp(of_one, (args[which],), (tangent,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(args[which], tangent)
        for call in (of_one, lambda t: torch.no_grad()(of_one)(t)):
            with pytest.raises(NotImplementedError, match="forward-mode AD"):
                call(dual)
        of_one(args[which])  # no tangent, nothing to lose


def test_meta_tensors():
    conv = SparseConv2d(4, 6, 3, device="meta")
    y = conv(torch.empty(2, 4, 8, 8, device="meta"))
    assert y.shape == (2, 6, 6, 6)
    assert y.is_meta
