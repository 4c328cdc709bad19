"""The elementwise kernels of every instruction set, on whatever divides badly into vectors."""

from __future__ import annotations

import pytest
import torch
from helpers.elementwise_cases import (
    DTYPES,
    OTHERS,
    check_affine,
    check_moments,
    gradient_like,
    operands,
    reference,
    widened,
)
from helpers.formats import FORMATS, channels_last
from helpers.kernel_cases import ISAS, kernels
from torch import Tensor

from dsr_kernels.backends.fused import Affine
from dsr_kernels.backends.native import _C
from dsr_kernels.ops.fused import elementwise

# N, C, H, W: around vectors of any width, chunks of pixels and images, and blocks of channels.
SIZES = {
    "one number": (1, 1, 1, 1),
    "one channel": (5, 1, 7, 9),
    "single pixels": (19, 37, 1, 1),
    "single pixels of one image": (1, 70, 1, 1),
    "2 x 2": (9, 5, 2, 2),
    "7 x 7": (45, 66, 7, 7),
    "whole vectors": (3, 32, 8, 8),
    "one image in pieces": (1, 3, 45, 47),
    "images in pieces": (2, 2, 65, 64),
    "blocks of channels": (2, 1031, 3, 5),
    "chunks of images": (130, 3, 6, 6),
    "long columns": (3, 2, 700, 1),
}
isas = pytest.mark.parametrize("isa", ISAS)
sizes = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
last = pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
others = pytest.mark.parametrize("which", OTHERS)


def formatted(x: Tensor, last: bool) -> Tensor:
    return channels_last(x) if last else x


@isas
@sizes
@dtypes
@last
def test_moments_agree_with_float64(isa, size, dtype, last):
    with kernels(isa):
        check_moments(formatted(operands(size, dtype, "alone").x * 3 + 2, last))


@isas
@sizes
@dtypes
@last
def test_an_affine_map_agrees_with_float64(isa, size, dtype, last):
    with kernels(isa):
        for which in OTHERS:
            given = operands(size, dtype, which)
            given = given._replace(x=formatted(given.x, last))
            for relu in (False, True):
                check_affine(given, relu)


@isas
@others
@pytest.mark.parametrize("name", FORMATS)
def test_every_memory_format(isa, which, name):
    of_x, of_grad = FORMATS[name]
    given = operands((3, 5, 6, 7), which=which)
    x = of_x(given.x)
    with kernels(isa):
        check_moments(x)
        check_affine(given._replace(x=x), relu=True, grad_format=of_grad)


def all_results(size, dtype, last) -> list[Tensor]:
    given = operands(size, dtype, requires_grad=True)
    x, by, other, other_by = given
    x, results = formatted(x, last), []
    mean, variance = elementwise.channel_moments(x)
    results += [mean, variance, *torch.autograd.grad((mean + variance).sum(), x)]
    for rest in ((), (other,), (other, other_by)):
        y = elementwise.channel_affine(x, by, True, *rest)
        results += [y, *torch.autograd.grad(y, (x, *by), gradient_like(y))]
    return results


@isas
@dtypes
@last
@pytest.mark.parametrize("size", [(9, 37, 23, 29), (40, 130, 7, 7), (1, 3, 150, 151)])
def test_results_do_not_depend_on_threads(isa, dtype, last, size):
    results = []
    for threads in (1, 2, 3, 5):
        with kernels(isa, threads=threads):
            results.append(all_results(size, dtype, last))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@isas
@last
def test_bfloat16_has_the_bits_of_float32_rounded(isa, last):
    size, low = (5, 35, 9, 11), torch.bfloat16
    with kernels(isa):
        for which in OTHERS:
            given = operands(size, low, which)
            x, other = formatted(given.x, last), given.other
            wide_other = None if other is None else other.float()
            results = []
            for a, b in ((x, other), (x.float(), wide_other)):
                a = a.detach().requires_grad_()
                y = elementwise.channel_affine(a, given.by, True, b, given.other_by)
                results.append([y, *torch.autograd.grad(y, a, gradient_like(x).to(y.dtype))])
            for ours, wide in zip(*results, strict=True):
                assert torch.equal(ours, wide.to(low))
        of_low, of_wide = map(elementwise.channel_moments, (x, x.float()))
        assert all(map(torch.equal, of_low, of_wide))


@isas
@dtypes
@last
def test_moments_far_from_zero(isa, dtype, last):
    x = formatted(operands((8, 5, 31, 33), torch.float64, "alone").x, last)
    x = (x + 1000).to(dtype)
    x[:, :, :, 0] = 0  # and the first of a chunk is no measure for the others
    x[0, 0, 0, 0] = -3e4
    with kernels(isa):
        check_moments(x)


@isas
@dtypes
@last
def test_a_constant_channel_has_no_variance(isa, dtype, last):
    x = torch.tensor([0.0, 1000.0, -0.1, 3e30]).to(dtype)
    x = formatted(x.view(1, 4, 1, 1).repeat(21, 1, 13, 11), last)
    with kernels(isa):
        mean, variance = elementwise.channel_moments(x)
    assert torch.equal(mean.to(dtype), x[0, :, 0, 0])
    assert variance.eq(0).all()


@isas
@dtypes
@last
@pytest.mark.parametrize("place", [(0, 0), (20, 12)], ids=["first", "last"])
def test_moments_of_nan_and_infinity_are_torchs(isa, dtype, last, place):
    x = formatted(operands((21, 6, 13, 13), dtype, "alone").x, last)
    n, w = place
    for c, value in enumerate((torch.nan, torch.inf, -torch.inf)):
        x[n, c, w, w] = value
    x[n, 3, w, w], x[10, 3, 4, 4] = torch.inf, -torch.inf
    x[:, 4] = torch.inf
    with kernels(isa):
        mean, variance = elementwise.channel_moments(x)
    exact = x.double()  # torch.var_mean's own mean is NaN where torch.mean's is infinite
    expected = exact.mean((0, 2, 3)), exact.var((0, 2, 3), correction=0)
    for ours, theirs in zip((mean, variance), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, equal_nan=True, rtol=1e-5, atol=1e-6)


@isas
@others
@dtypes
@last
def test_nan_and_infinity_pass_as_in_torch(isa, which, dtype, last):
    given = operands((4, 19, 5, 7), dtype, which)
    x = given.x
    x[0, :, 0, 0], x[1, :, 1, 1], x[2, :, 2, 2] = torch.nan, torch.inf, -torch.inf
    given.by.scale[3], given.by.shift[5], given.by.center[7] = torch.nan, torch.inf, -torch.inf
    with kernels(isa):
        check_affine_beside_torch(given._replace(x=formatted(x, last)))


def check_affine_beside_torch(given):
    """Where ours is not finite, and with which sign, is where torch's is not."""
    exact = widened(given)
    for tensor in given.tensors():
        tensor.requires_grad_()
    y = elementwise.channel_affine(given.x, given.by, True, given.other, given.other_by)
    expected = reference(exact, True)
    ours = [y, *torch.autograd.grad(y, given.tensors(), torch.ones_like(y))]
    theirs = torch.autograd.grad(expected, exact.tensors(), torch.ones_like(expected))
    assert not all(t.isfinite().all() for t in ours)
    for mine, other in zip(ours, (expected, *theirs), strict=True):
        assert torch.equal(mine.isnan(), other.isnan())
        assert torch.equal(mine.isposinf(), other.isposinf())
        assert torch.equal(mine.isneginf(), other.isneginf())


@isas
@last
def test_an_output_beyond_the_caches(isa, last):
    """It is written past them, in whole vectors."""
    n, c, h, w = 17, 16, 192, 176
    assert 4 * n * c * h * w > 32 << 20
    x = formatted(torch.arange(n * c * h * w, dtype=torch.float32).view(n, c, h, w) % 1021, last)
    by = Affine(*(torch.arange(c, dtype=torch.float32) + k for k in range(3)))
    center, scale, shift = (t[:, None, None] for t in by)
    with kernels(isa, threads=2):
        y = elementwise.channel_affine(x, by)
        assert torch.equal(y, (x - center) * scale + shift)  # small integers: exact
        gx, _, sums = elementwise.channel_affine_grad(x, x, by, True, None, None, None)
    gm = torch.where(y > 0, x, 0)
    assert torch.equal(gx, gm * scale)
    torch.testing.assert_close(sums[0].double(), gm.double().sum((0, 2, 3)))


@isas
def test_the_callers_floating_point_mode_is_kept(isa):
    with kernels(isa):
        elementwise.channel_affine(*operands((1, 1, 1, 1))[:2])
    assert (torch.full((1,), 1e-40) * 1.0).abs().max() > 0


def test_the_native_core_refuses_an_element_it_does_not_know():
    with pytest.raises(ValueError, match=r"element: expected 'float32'.*got 'int8'"):
        _C.channel_moments("int8", (1, 1, 1), False, 0, 0, 0, 1, 0)
