"""The fused kernels in every variant: instruction sets x lanes, against dense torch in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from helpers.formats import variants
from helpers.fused_cases import check_problem, problem_of, results
from helpers.kernel_cases import CASES, ISAS, applies, conv_and_input, kernels
from helpers.nn_cases import layer


def problem(name: str, dtype: torch.dtype = torch.float32, last: bool = False, **options):
    conv, x = conv_and_input(name, dtype)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    return problem_of(conv, x, **options)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("name", CASES)
@variants
def test_every_variant(isa: str, lanes: str, name: str, last: bool) -> None:
    if applies(name, isa, lanes):
        with kernels(isa, lanes):
            check_problem(problem(name, last=last))


@pytest.mark.parametrize("name", ["16 wide", "8 wide", "7 wide", "1 x 1", "16 wide, stride 2"])
@variants
def test_every_combination_of_parts(isa: str, lanes: str, name: str) -> None:
    with kernels(isa, lanes):
        for affine, relu, residual, statistics in itertools.product([False, True], repeat=4):
            check_problem(
                problem(name, affine=affine, relu=relu, residual=residual, statistics=statistics)
            )


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("name", ["16 wide", "8 wide", "13 wide, 5 x 2 'same'", "1 x 1", "stem"])
@variants
def test_bfloat16(isa: str, lanes: str, name: str, last: bool) -> None:
    if applies(name, isa, lanes):
        with kernels(isa, lanes):
            check_problem(problem(name, last=last).in_bfloat16())


@pytest.mark.parametrize("name", ["16 wide", "7 wide", "stride (3, 2), 2 x 1", "1 x 1", "groups"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("lanes", ["plane", "batch"])
def test_float64(isa: str, lanes: str, name: str) -> None:
    for last in (False, True):
        with kernels(isa, lanes):
            check_problem(problem(name, torch.float64, last))


@pytest.mark.parametrize("name", ["16 wide", "8 wide", "28 wide", "blocks and stride", "1 x 1"])
@variants
def test_the_same_bits_for_any_number_of_threads(isa: str, lanes: str, name: str) -> None:
    if not applies(name, isa, lanes):
        return
    found = []
    for threads in (1, 2, 3, 7):
        with kernels(isa, lanes, threads):
            leaves = problem(name).leaves()
            found.append(results(leaves, leaves.run()))
    for other in found[1:]:
        for key, tensor in found[0].items():
            assert torch.equal(tensor, other[key]), key


@variants
def test_statistics_far_from_zero(isa: str, lanes: str) -> None:
    """Mean 1000, standard deviation 1: sums of squares would leave nothing of the variance."""
    conv = layer(3, 20, 3, padding=1, sparsity=0.5)
    for last in (False, True):
        x = torch.randn(33, 3, 11, 16)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        with kernels(isa, lanes):
            p = problem_of(conv, x, affine=False, relu=False)
            residual = 1000 + p.residual
            values = torch.zeros_like(p.values)
            p = p._replace(residual=residual, values=values, bias=torch.zeros(20))
            y, mean, variance, _ = p.run()
        assert torch.equal(y, residual)
        truth = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        assert (mean - truth[1]).abs().max() < 1e-4
        assert (variance - truth[0]).abs().max() < 1e-4


@pytest.mark.parametrize("outputs", [17, 40, 66, 100])
@variants
def test_each_channel_has_a_pivot_of_its_own(isa: str, lanes: str, outputs: int) -> None:
    """Channels of a last, partial vector must not choose for those of the next strip or thread."""
    conv = layer(4, outputs, 3, padding=1, sparsity=0.0)
    x = torch.randn(16, 4, 14, 14).contiguous(memory_format=torch.channels_last)
    found = []
    for threads in (1, 3):
        with kernels(isa, lanes, threads):
            p = problem_of(conv, x, residual=False)
            y, mean, variance, _ = p._replace(bias=torch.full((outputs,), 1000.0)).run()
        truth = torch.var_mean(y.double(), (0, 2, 3), correction=0)
        assert ((variance - truth[0]).abs() / truth[0]).max() < 1e-4
        assert (mean - truth[1]).abs().max() < 1e-3
        found.append((mean, variance))
    assert all(map(torch.equal, *found))


@pytest.mark.parametrize("what", [float("inf"), float("-inf"), float("nan")])
@variants
def test_what_is_not_finite_passes_as_in_torch(isa: str, lanes: str, what: float) -> None:
    conv = layer(4, 6, 3, padding=1, sparsity=0.0)
    x = torch.randn(17, 4, 8, 16)
    x[3, 1, 2, 5] = what
    x[0, 2, 0, 0] = what  # the first of its channel
    with kernels(isa, lanes):
        p = problem_of(conv, x, residual=False)
        ours, theirs = p.run(), p.meaning()
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.isinf(), other.isinf())
        assert torch.equal(one[one.isinf()], other[other.isinf()])


@variants
def test_an_infinite_output_leaves_an_infinite_mean(isa: str, lanes: str) -> None:
    conv = layer(3, 5, 3, padding=1, sparsity=0.5)
    x = torch.randn(16, 3, 4, 16)
    for place in ((0, 2, 0, 0), (9, 2, 3, 7)):
        with kernels(isa, lanes):
            p = problem_of(conv, x)
            p.residual[place] = float("inf")
            _, mean, variance, _ = p.run()
        assert mean[2] == float("inf") and variance[2].isnan()
        assert mean[[0, 1, 3, 4]].isfinite().all() and variance[[0, 1, 3, 4]].isfinite().all()


@variants
def test_formats_that_differ_are_made_alike(isa: str, lanes: str) -> None:
    """Input, residual and gradients of any strides: expanded, sliced, transposed."""
    conv = layer(5, 6, 3, padding=1, sparsity=0.5)
    x = torch.randn(9, 5, 16, 7).transpose(2, 3)
    with kernels(isa, lanes):
        p = problem_of(conv, x)
        p = p._replace(residual=torch.randn(9, 6, 7, 32)[..., ::2])
        check_problem(p)
        p = p._replace(residual=torch.randn(1, 6, 7, 1).expand(9, 6, 7, 16))
        leaves = p.leaves()
        run, meant = leaves.run(), p.map(lambda t: t.double()).leaves()
        grad = torch.ones(()).expand(run.y.shape)
        ours = torch.autograd.grad(run.y, (leaves.x, leaves.values), grad)
        theirs = torch.autograd.grad(meant.meaning().y, (meant.x, meant.values), grad.double())
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("images", [1, 2, 5, 17, 40])
@variants
def test_few_units_give_the_same_bits_for_any_number_of_threads(
    isa: str, lanes: str, images: int, last: bool
) -> None:
    """Then channels are shared out among threads, by which sums must not change."""
    conv = layer(17, 50, 3, padding=1, sparsity=0.7)
    x = torch.randn(images, 17, 6, 8)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    found = []
    for threads in (1, 2, 3, 5):
        with kernels(isa, lanes, threads):
            leaves = problem_of(conv, x).leaves()
            found.append(results(leaves, leaves.run()))
    for other in found[1:]:
        for key, tensor in found[0].items():
            assert torch.equal(tensor, other[key]), key
