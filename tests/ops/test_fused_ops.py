"""The fused operation as torch sees it: derivatives, schemas, compilation, and wrong arguments."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from helpers.fused_cases import Problem, check_problem, problem_of, results
from helpers.nn_cases import layer
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from dsr_kernels.backends.fused import Affine, Prologue, StatisticsGrad
from dsr_kernels.nn import functional
from dsr_kernels.ops.fused import autograd, library

OPS = torch.ops.dsr_kernels


def small(dtype: torch.dtype = torch.float64, last: bool = False, **options) -> Problem:
    conv = layer(
        6, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, dtype=dtype
    )
    x = torch.randn(2, 6, 5, 4, dtype=dtype, generator=torch.Generator().manual_seed(5))
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    return problem_of(conv, x, **options)


def flat(p: Problem) -> tuple:
    """The arguments of torch.ops.dsr_kernels.sparse_conv2d_fused."""
    weight = p.values, p.bias, *p.pattern
    numbers = p.affine or (None, None, None)
    return (p.x, *numbers, p.relu, *weight, p.residual, p.statistics, *p.shape)


def of_variables(p: Problem, direct: bool = True):
    """(function of p's variables, the variables)."""

    def rebuilt(*variables: Tensor) -> Problem:
        left = iter(variables)
        return p.map(lambda _: next(left))

    def function(*variables: Tensor):
        again = rebuilt(*variables)
        if direct:
            return tuple(t for t in again.run() if t is not None)
        y, mean, variance = OPS.sparse_conv2d_fused(*flat(again))
        return (y, mean, variance) if p.statistics else y

    return function, [v.detach().requires_grad_() for v in p.variables()]


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "by the dispatcher"])
def test_derivatives(direct: bool) -> None:
    for affine, relu, residual, statistics in itertools.product([False, True], repeat=4):
        p = small(affine=affine, relu=relu, residual=residual, statistics=statistics)
        function, variables = of_variables(p, direct)
        assert gradcheck(function, variables, fast_mode=True)
        assert gradgradcheck(function, variables, fast_mode=True)
    function, variables = of_variables(small(), direct)
    assert gradcheck(function, variables)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_opcheck(dtype: torch.dtype, last: bool) -> None:
    low = dtype in (torch.bfloat16, torch.float16)
    p = small(torch.float32 if low else dtype, last)
    if low:
        p = p._replace(x=p.x.to(dtype), residual=p.residual.to(dtype))
    torch.library.opcheck(OPS.sparse_conv2d_fused, flat(p.leaves()))
    without = p.leaves()._replace(affine=None, residual=None, statistics=False, bias=None)
    torch.library.opcheck(OPS.sparse_conv2d_fused, flat(without))
    y = p.run().y
    numbers, of_y = (p.affine, (y, *[p.values.new_ones(4)] * 3))
    weight = p.values, *p.pattern
    args = (torch.randn_like(y), *of_y, *weight, p.x, *numbers, True, torch.randn_like(p.x))
    torch.library.opcheck(OPS.sparse_conv2d_fused_grad_input, (*args, *p.shape))
    args = (p.x, *numbers, True, torch.randn_like(y), *of_y, *p.pattern, *p.shape)
    torch.library.opcheck(OPS.sparse_conv2d_fused_grad_weight, (*args, p.values.dtype))
    args = (p.x, *numbers, True, *weight, p.values.new_ones(4), p.values.new_ones(4), y, True)
    torch.library.opcheck(OPS.sparse_conv2d_folded, (*args, *p.shape))


def test_compiled_without_a_break() -> None:
    p = small(torch.float32)
    function, variables = of_variables(p)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")

    def loss(outputs) -> Tensor:
        return sum((t * t).sum() for t in outputs)

    ours = torch.autograd.grad(loss(compiled(*variables)), variables)
    theirs = torch.autograd.grad(loss(function(*variables)), variables)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_float16_is_composed_of_plain_operations() -> None:
    p = small(torch.float32)
    low = p._replace(x=p.x.half(), residual=p.residual.half())
    torch.testing.assert_close(low.run().y.float(), p.run().y, rtol=1e-2, atol=3e-2)


@pytest.mark.parametrize("of_x, of_grad", [(torch.float32, torch.float16), (torch.float16, None)])
def test_operands_of_two_types(of_x: torch.dtype, of_grad: torch.dtype | None) -> None:
    """No kernel takes float16 for something else, on either side."""
    p = small(torch.float32)
    grad = torch.randn(p.run().y.shape)
    weight = p.affine, True, grad, *[None] * 4, *p.pattern, *p.shape, torch.float32
    numbers, relu, *rest = weight
    expected = OPS.sparse_conv2d_fused_grad_weight(p.x, *numbers, relu, *rest)
    rest[0] = grad.to(of_grad or torch.float32)
    found = OPS.sparse_conv2d_fused_grad_weight(p.x.to(of_x), *numbers, relu, *rest)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=5e-2)


def test_both_gradients_at_once_are_those_of_two_passes() -> None:
    """Bit for bit, whatever the threads: sums are made of the same slices."""
    conv = layer(20, 33, 3, padding=1, sparsity=0.8)
    p = problem_of(conv, torch.randn(35, 20, 9, 16), residual=False)
    y, prologue = p.run().y, Prologue(p.affine, True)
    grad, passed = torch.randn_like(y), torch.randn_like(p.x)
    by = StatisticsGrad(y, Affine(*torch.randn(3, 33)))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        weight = p.values, *p.pattern
        args = (grad, by, *weight, p.x, prologue, passed, p.shape)
        found.append(library.sparse_conv2d_fused_backward(*args))
        apart = (p.x, prologue, grad, by, *p.pattern, p.shape, torch.float32)
        found.append(
            (
                *library.sparse_conv2d_fused_grad_input(*args),
                library.sparse_conv2d_fused_grad_weight(*apart).view(p.values.shape),
            )
        )
    torch.set_num_threads(2)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


def test_an_output_without_use_has_no_gradient() -> None:
    p = small().leaves()
    out = p.run()
    grads = torch.autograd.grad(out.x.sum(), p.variables(), allow_unused=True)
    assert torch.equal(grads[0], torch.ones_like(p.x))
    assert all(g is None for g in grads[1:])


def test_parts_that_meet_only_padding_are_right_too() -> None:
    conv = layer(3, 4, 3, padding=8, dilation=8, sparsity=0.2)
    check_problem(problem_of(conv, torch.randn(3, 3, 8, 8)))


def test_frozen_numbers_and_weights() -> None:
    """Gradients of x alone, or of the weight alone."""
    p = small(torch.float32)
    every = results(whole := p.leaves(), whole.run())
    for name, at in (("x", 0), ("values", 4)):
        variables = [v.detach() for v in p.variables()]
        variables[at].requires_grad_()
        left = iter(variables)
        alone = p.map(lambda _, left=left: next(left))
        generator = torch.Generator().manual_seed(13)
        outputs = [t for t in alone.run() if t is not None and t.requires_grad]
        grads = [
            torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.dtype)
            for t in outputs
        ]
        (grad,) = torch.autograd.grad(outputs, variables[at], grads)
        torch.testing.assert_close(grad, every[f"gradient of {name}"])


# --- wrong arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["center", "scale", "shift"])
def test_numbers_of_the_wrong_length_or_dtype(name: str) -> None:
    p = small(torch.float32)
    wrong = p.affine._replace(**{name: torch.zeros(5)})
    with pytest.raises(ValueError, match=rf"expected {name} of shape \(6,\).*got \(5,\)"):
        p._replace(affine=wrong).run()
    wrong = p.affine._replace(**{name: torch.zeros(6, dtype=torch.float64)})
    with pytest.raises(ValueError, match=f"expected {name} .*float32, got .*float64"):
        p._replace(affine=wrong).run()


def test_numbers_come_together() -> None:
    args = list(flat(small(torch.float32)))
    args[1] = None
    with pytest.raises(ValueError, match="got scale and shift alone"):
        OPS.sparse_conv2d_fused(*args)


def test_a_residual_of_another_shape_or_dtype() -> None:
    p = small(torch.float32)
    shape = tuple(p.residual.shape)
    with pytest.raises(ValueError, match=re.escape(f"expected residual of shape {shape}")):
        p._replace(residual=p.residual[:, :, 1:]).run()
    with pytest.raises(ValueError, match=r"expected residual .*float32 .*got .*float64"):
        p._replace(residual=p.residual.double()).run()


def test_statistics_of_an_empty_batch() -> None:
    p = small(torch.float32)
    empty = p._replace(x=p.x[:0], residual=p.residual[:0])
    with pytest.raises(ValueError, match="at least one value per channel"):
        empty.run()
    assert empty._replace(statistics=False).run().y.shape[0] == 0


def test_an_unbatched_input() -> None:
    p = small(torch.float32)
    weight = p.values, p.bias, *p.pattern
    with pytest.raises(ValueError, match="expected a 4-D input"):
        functional.sparse_conv2d_fused(p.x[0], Prologue(), *weight, p.shape.weight_shape)


def test_the_folded_operation_has_no_derivative() -> None:
    p = small(torch.float32).leaves()
    ones = torch.ones(4)
    args = p.x, Prologue(), p.values, *p.pattern, ones, ones, None, False, p.shape
    with pytest.raises(RuntimeError, match=r"has no derivative; run under torch\.no_grad"):
        autograd.sparse_conv2d_folded(*args)
    with torch.no_grad():
        y = autograd.sparse_conv2d_folded(*args)
        expected = p._replace(affine=None, relu=False, residual=None, bias=ones).meaning().y
    torch.testing.assert_close(y, expected)


def test_a_graph_does_not_outlive_its_values() -> None:
    p = small(torch.float32).leaves()
    y = p.run().y
    with torch.no_grad():
        p.values.mul_(2)
    with pytest.raises(RuntimeError, match="changed between forward and backward"):
        y.sum().backward()


def test_batch_norm_of_torch_is_the_affine_map() -> None:
    """relu(batch_norm(x)) inside the convolution, its gradients by arithmetic on numbers."""
    torch.manual_seed(0)
    conv = layer(5, 7, 3, padding=1, sparsity=0.5, dtype=torch.float64)
    norm = nn.BatchNorm2d(5, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(6, 5, 4, 9, dtype=torch.float64, requires_grad=True)
    variables = [x, norm.weight, norm.bias, conv.weight_values]
    theirs = conv(torch.relu(norm(x)))
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    numbers = Affine(mean, norm.weight * torch.rsqrt(variance + norm.eps), norm.bias)
    p = problem_of(conv, x.detach())
    ours = p._replace(
        x=x,
        affine=numbers,
        values=conv.weight_values,
        bias=conv.bias,
        residual=None,
        statistics=False,
    ).run()
    grad = torch.randn_like(theirs)
    torch.testing.assert_close(ours.y, theirs)
    torch.testing.assert_close(
        torch.autograd.grad(ours.y, variables, grad),
        torch.autograd.grad(theirs, variables, grad),
    )


def test_bfloat16_beside_float64_values() -> None:
    """No kernel takes the two together, so it is composed, as a plain convolution converts."""
    conv = layer(4, 6, 3, padding=1, dtype=torch.float64)
    x = torch.randn(2, 4, 8, 8).bfloat16().requires_grad_()
    y = conv.fused(x, Prologue(None, True), None, True).y
    assert torch.equal(y, conv(x.relu()))
    (grad,) = torch.autograd.grad(y.double().square().sum(), x)
    (expected,) = torch.autograd.grad(conv(x.relu()).double().square().sum(), x)
    torch.testing.assert_close(grad, expected)
