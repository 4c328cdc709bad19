"""The elementwise operations under torch's own checks, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from helpers.elementwise_cases import (
    OTHERS,
    Operands,
    check_affine,
    check_moments,
    gradient_like,
    operands,
    reference,
)
from helpers.formats import channels_last
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from dsr_kernels.backends.fused import Affine, StatisticsGrad
from dsr_kernels.ops.fused import composed, elementwise

OPS = torch.ops.dsr_kernels
SIZE = (3, 4, 5, 3)
others = pytest.mark.parametrize("which", OTHERS)
relus = pytest.mark.parametrize("relu", [False, True], ids=["linear", "relu"])


def flat_arguments(given: Operands, relu: bool) -> tuple:
    return given.x, *given.by, relu, given.other, *elementwise.flat(given.other_by)


def function_of(given: Operands, relu: bool, direct: bool = True):
    """channel_affine as a function of the tensors that are there."""

    def call(x: Tensor, *rest: Tensor) -> Tensor:
        left = list(rest)
        by = Affine(left.pop(0), left.pop(0), left.pop(0))
        other = left.pop(0) if left else None
        other_by = Affine(*left) if left else None
        if direct:
            return elementwise.channel_affine(x, by, relu, other, other_by)
        return OPS.channel_affine(x, *by, relu, other, *elementwise.flat(other_by))

    return call


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatcher"])
@others
@relus
def test_gradcheck_to_second_order(which, relu, direct):
    given = operands(SIZE, torch.float64, which, requires_grad=True)
    call = function_of(given, relu, direct)
    assert gradcheck(call, given.tensors(), fast_mode=not direct)
    assert gradgradcheck(call, given.tensors(), fast_mode=True)


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "dispatcher"])
def test_gradcheck_of_moments_to_second_order(direct):
    x = operands(SIZE, torch.float64, "alone", requires_grad=True).x
    call = elementwise.channel_moments if direct else OPS.channel_moments
    assert gradcheck(call, (x,))
    assert gradgradcheck(call, (x,))


@pytest.mark.parametrize(
    "dtype, last", [(torch.float32, False), (torch.bfloat16, True), (torch.float16, False)]
)
@others
def test_opcheck(which, dtype, last):
    given = operands(SIZE, dtype, which)
    x = channels_last(given.x) if last else given.x
    given = given._replace(x=x.requires_grad_())
    torch.library.opcheck(OPS.channel_affine, flat_arguments(given, True))
    torch.library.opcheck(OPS.channel_moments, (x,))
    given = given._replace(x=x.detach())
    out = torch.relu(given.x) if which == "other" else None
    if which == "other":
        given = given._replace(other=None)
    arguments = (gradient_like(given.x), *flat_arguments(given, True), out)
    torch.library.opcheck(OPS.channel_affine_grad, arguments)


def normalized(x: Tensor, weight: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """Batch norm, an addition and ReLU, as a block of a ResNet ends."""
    mean, variance = elementwise.channel_moments(x)
    by = Affine(mean, weight * torch.rsqrt(variance + 1e-5), bias)
    return elementwise.channel_affine(x, by, True, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
def test_compiles_into_one_graph(dtype, last):
    given = operands((6, 5, 7, 9), dtype, "other")
    x = channels_last(given.x) if last else given.x
    leaves = [t.detach().requires_grad_() for t in (x, given.by.scale, given.by.shift, given.other)]
    torch._dynamo.reset()
    compiled = torch.compile(normalized, fullgraph=True, backend="aot_eager")
    results = []
    for call in (normalized, compiled):
        y = call(*leaves)
        results.append([y, *torch.autograd.grad(y, leaves, gradient_like(y))])
    torch._dynamo.reset()
    for eager, ours in zip(*results, strict=True):
        assert eager.stride() == ours.stride()
        torch.testing.assert_close(eager, ours)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
def test_batch_norm_made_of_them_is_torchs(last):
    x, by, other, _ = operands((6, 5, 7, 9), torch.float64, "other", requires_grad=True)
    x = (channels_last(x) if last else x).detach().requires_grad_()
    _, weight, bias = by
    ours = normalized(x, weight, bias, other)
    norm = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True)
    theirs = torch.relu(norm + other)
    torch.testing.assert_close(ours, theirs)
    grad, leaves = gradient_like(ours), (x, weight, bias, other)
    grads = [torch.autograd.grad(y, leaves, grad) for y in (ours, theirs)]
    torch.testing.assert_close(*grads)


@relus
@others
def test_float16_is_composed(which, relu):
    given = operands(SIZE, torch.float16, which)
    check_affine(given, relu)
    check_moments(given.x)


def test_the_memory_format_is_the_inputs():
    given = operands((2, 4, 5, 6), which="other")
    for of_x in (lambda x: x, channels_last):
        for of_other in (lambda x: x, channels_last):
            x = of_x(given.x).detach().requires_grad_()
            y = elementwise.channel_affine(x, given.by, True, of_other(given.other))
            (gx,) = torch.autograd.grad(y.sum(), x)
            assert y.stride() == gx.stride() == x.stride()
            torch.testing.assert_close(y, reference(given, True))


def test_only_what_is_asked_for_has_a_gradient():
    given = operands(SIZE)
    for wanted in range(8):
        leaves = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(given.tensors())]
        function_of(given, True)(*leaves).sum().backward()
        assert [t.grad is not None for t in leaves] == [i == wanted for i in range(8)]


def test_what_a_graph_keeps():
    """The operands, which others keep as well; the output in place of what was added as it is."""
    for which, relu, kept in (
        ("alone", True, {"x"}),
        ("other", False, {"x"}),
        ("other", True, {"x", "y"}),
        ("other mapped", True, {"x", "other"}),
    ):
        given = operands(SIZE, which=which, requires_grad=True)
        y = function_of(given, relu)(*given.tensors())
        places = {"x": given.x, "y": y, "other": given.other}
        named = {t.data_ptr(): name for name, t in places.items() if t is not None}
        saved = [t for t in y.grad_fn.saved_tensors if t is not None and t.dim() == 4]
        assert {named[t.data_ptr()] for t in saved} == kept


def test_an_input_changed_in_between_is_noticed():
    x, by, _, _ = operands(SIZE, requires_grad=True)
    changed = x.clone()
    y = elementwise.channel_affine(changed, by, True)
    changed.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("size", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)])
def test_nothing_gives_nothing(size):
    given = operands(size, requires_grad=True)
    for last in (False, True):
        leaf = channels_last(given.x) if last else given.x
        tensors = [leaf, *given.tensors()[1:]]
        y = function_of(given, True)(*tensors)
        assert y.shape == size
        grads = torch.autograd.grad(y.sum(), tensors)
        assert [g.shape for g in grads] == [t.shape for t in tensors]
        assert all(not g.any() for g in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
def test_the_whole_gradient_of_an_output_with_statistics(dtype, last):
    y, by, grad, _ = operands((7, 6, 9, 5), dtype, "other")
    y = channels_last(y) if last else y
    assert elementwise.whole_grad(grad, None) is grad
    expected = composed.whole_grad(grad, StatisticsGrad(y, by))
    with torch.no_grad():
        whole = elementwise.whole_grad(grad, StatisticsGrad(y, by))
    assert whole.dtype == dtype
    torch.testing.assert_close(whole, expected)
    recorded = elementwise.whole_grad(grad.requires_grad_(), StatisticsGrad(y, by))
    assert recorded.requires_grad


def test_lazily_negated_tensors_are_read_with_their_sign():
    given = operands(SIZE)
    tensors = given.tensors()
    for i, tensor in enumerate(tensors):
        negated = [*tensors[:i], torch._neg_view(tensor), *tensors[i + 1 :]]
        plain = [*tensors[:i], -tensor, *tensors[i + 1 :]]
        call = function_of(given, True)
        assert torch.equal(call(*negated), call(*plain))


def test_forward_mode_is_refused():
    given = operands(SIZE)
    with pytest.raises(NotImplementedError, match="forward-mode AD"):
        torch.func.jvp(elementwise.channel_moments, (given.x,), (given.x,))


def test_the_gradient_has_no_derivative_of_its_own():
    x, by, _, _ = operands(SIZE, requires_grad=True)
    with pytest.raises(RuntimeError, match="channel_affine_grad: has no derivative"):
        OPS.channel_affine_grad(x, x, *by, True, None, None, None, None, None)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, message",
    [
        (torch.zeros(0, 3, 4, 4), "channel_moments: expected x with at least one number"),
        (torch.zeros(2, 3, 4, 0), r"one number per channel, got shape \(2, 3, 4, 0\)"),
        (torch.zeros(2, 3), r"expected x of shape \[N, C, H, W\], got \(2, 3\)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.int64), "expected x of one of float32.*got.*int64"),
    ],
)
def test_moments_refuse(x, message):
    for call in (elementwise.channel_moments, OPS.channel_moments):
        with pytest.raises(ValueError, match=message):
            call(x)


@pytest.mark.parametrize(
    "which, wrong, message",
    [
        (1, torch.zeros(5), r"expected center of shape \(4,\) and dtype torch.float32.*got \(5,\)"),
        (2, torch.zeros(4).double(), "expected scale of .*got .* and torch.float64"),
        (3, torch.zeros(4, 1), r"expected shift of shape \(4,\).*got \(4, 1\)"),
        (3, torch.zeros(4, device="meta"), "expected shift on cpu, got meta"),
        (4, torch.zeros(3, 4, 5, 4), r"expected other of shape \(3, 4, 5, 3\).*got \(3, 4, 5, 4\)"),
        (4, torch.zeros(SIZE).bfloat16(), "expected other of .*float32.*got .*bfloat16"),
        (5, torch.zeros(1), "expected other_center of shape"),
        (6, torch.zeros(4).bfloat16(), "expected other_scale of .*got .*bfloat16"),
        (7, torch.zeros(3), "expected other_shift of shape"),
        (0, torch.zeros(4, 5, 3), r"expected x of shape \[N, C, H, W\]"),
        (0, torch.zeros(SIZE, dtype=torch.complex64), "expected x of one of .*got torch.complex64"),
    ],
)
def test_an_affine_map_refuses(which, wrong, message):
    given = operands(SIZE)
    tensors = given.tensors()
    tensors[which] = wrong
    for direct in (True, False):
        with pytest.raises(ValueError, match=f"channel_affine: {message}"):
            function_of(given, True, direct)(*tensors)


def test_an_affine_map_without_its_tensor_is_refused():
    x, by, other, other_by = operands(SIZE)
    with pytest.raises(ValueError, match="expected other together with other_center"):
        elementwise.channel_affine(x, by, True, None, other_by)
    with pytest.raises(ValueError, match="together or none of them, got other_scale alone"):
        OPS.channel_affine(x, *by, True, other, None, other_by.scale, None)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"out": True, "other": None, "relu": False}, "expected out only with relu=True"),
        ({"out": True}, "expected out only with relu=True and without other.* and other"),
        ({"other_by": None}, "expected no other where it has no affine map"),
        ({"grad": torch.zeros(3, 4, 5, 9)}, "expected grad of shape"),
    ],
)
def test_the_gradient_refuses(change, message):
    x, by, other, other_by = operands(SIZE)
    arguments = dict(grad=x, x=x, by=by, relu=True, other=other, other_by=other_by, out=None)
    arguments |= change
    if arguments["other"] is None:
        arguments["other_by"] = None
    if arguments["out"] is not None:
        arguments["out"] = x
    with pytest.raises(ValueError, match=message):
        elementwise.channel_affine_grad(**arguments)
