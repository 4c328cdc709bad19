"""What must not show in a result: the threads, the caller's mode, other images and channels."""

from __future__ import annotations

import platform

import pytest
import torch
from helpers.formats import variants
from helpers.fused_cases import problem_of
from helpers.kernel_cases import ISAS, LANES, applies, conv_and_input, kernels
from helpers.nn_cases import layer
from torch import Tensor

from dsr_kernels import SparseConv2d

BOUNDARY_CASES = ["7 wide", "16 wide", "4 wide", "stem", "blocks and stride", "dilation"]


def results(conv: SparseConv2d, x: Tensor, grad: Tensor | None = None) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = conv(x)
    grad = torch.cos(torch.arange(y.numel())).view(y.shape) if grad is None else grad
    return [y.detach(), *torch.autograd.grad(y, (x, conv.weight_values), grad)]


@pytest.mark.parametrize(
    "name", ["28 wide", "14 wide, 7 x 7", "blocks of channels", "stem", "8 wide"]
)
@variants
def test_results_do_not_depend_on_threads(isa: str, lanes: str, name: str) -> None:
    if not applies(name, isa, lanes):
        pytest.skip("refused; see test_lanes")
    conv, x = conv_and_input(name)
    by_threads = []
    for count in (1, 3):
        with kernels(isa, lanes, threads=count):
            by_threads.append(results(conv, x) + results(conv, x[:2]))
    assert all(map(torch.equal, *by_threads))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a mode of x86-64")
@variants
def test_subnormals_are_flushed_and_the_callers_mode_is_kept(isa: str, lanes: str) -> None:
    conv = layer(8, 8, 3, padding=1, sparsity=0.5, bias=False)
    tiny = torch.full((16, 8, 8, 8), 1e-40)
    many = torch.full((1 << 20,), 1e-40)  # enough for torch to use every thread
    with torch.no_grad():
        conv.weight_values.fill_(1.0)
    with kernels(isa, lanes, threads=3):
        for result in results(conv, tiny, tiny)[:2]:
            assert result.abs().max() == 0
        # A product of two subnormals is zero in any mode: the gradient needs a large factor.
        assert results(conv, tiny, torch.ones_like(tiny))[2].abs().max() == 0
        assert (many * 1.0).min() > 0
        assert (tiny[:1] * 1.0).min() > 0


def reached(conv: SparseConv2d, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Which results some non-finite element of x (y, values) or grad (gx, values) goes into."""
    pattern = layer(*_arguments(conv)[0], **_arguments(conv)[1])
    pattern.replace_topology(conv.crow_indices, conv.col_indices, torch.ones(conv.nnz))
    bad_x, bad_grad = (~t.isfinite() for t in (x, grad))
    y, _, from_x = results(pattern, bad_x.float(), torch.ones_like(grad))
    _, gx, from_grad = results(pattern, torch.ones_like(x), bad_grad.float())
    return [y > 0.5, gx > 0.5, (from_x > 0.5) | (from_grad > 0.5)]


def _arguments(conv: SparseConv2d) -> tuple:
    return (conv.in_channels, conv.out_channels, conv.kernel_size), {
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "sparsity": 0.5,
        "bias": False,
    }


def spoil(t: Tensor, value: float) -> Tensor:
    """One image's corners and an inner pixel, in one channel: where rows and images meet."""
    t = t.clone()
    image, channel = t.shape[0] // 2, t.shape[1] // 2
    for row, col in ((0, 0), (0, -1), (-1, 0), (-1, -1), (t.shape[2] // 2, t.shape[3] // 2)):
        t[image, channel, row, col] = value
    return t


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("name", BOUNDARY_CASES)
@variants
def test_what_is_not_finite_stays_where_it_belongs(
    isa: str, lanes: str, name: str, value: float
) -> None:
    if not applies(name, isa, lanes):
        pytest.skip("refused; see test_lanes")
    conv, x = conv_and_input(name)
    grad = torch.randn_like(conv(x))
    bad_x, bad_grad = spoil(x, value), spoil(grad, value)
    with kernels(isa, lanes):
        clean = results(conv, x, grad)
        spoiled = results(conv, bad_x, grad)[0], results(conv, x, bad_grad)[1]
        touched = reached(conv, bad_x, bad_grad)
        gradients = results(conv, bad_x, grad)[2], results(conv, x, bad_grad)[2]
        by_x = reached(conv, bad_x, grad)[2]
        by_grad = reached(conv, x, bad_grad)[2]
    for ours, expected, where in zip(spoiled, clean, touched, strict=False):
        assert torch.equal(ours[~where], expected[~where])
        assert not ours[where].isfinite().any()
    if lanes != "batch":  # see grad_weight.cpp: other taps of the same source channel may show it
        columns = conv.col_indices // (conv.kernel_size[0] * conv.kernel_size[1])
        by_x = columns == x.shape[1] // 2
    for ours, where in zip(gradients, (by_x, by_grad), strict=True):
        assert torch.equal(ours[~where], clean[2][~where])
        assert where.any()


@pytest.mark.parametrize("lanes", LANES)
def test_an_image_does_not_depend_on_its_batch(lanes: str) -> None:
    conv, x = conv_and_input("16 wide")
    with kernels(ISAS[-1], lanes):
        y = results(conv, x)[0]
        alone = conv(x[20:21]).detach()
    assert torch.equal(y[20:21], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [(64, 64), (20, 16), (44, 8), (64, 4), (9, 32)])
@pytest.mark.parametrize("isa", ISAS)
def test_an_output_too_large_for_the_caches_is_the_same(
    isa: str, size: tuple[int, int], dtype: torch.dtype
) -> None:
    """From 4 MB on whole lines go past the caches; of fewer images at a time none do."""
    generator = torch.Generator().manual_seed(5)
    of_image = 32 * size[0] * size[1] * dtype.itemsize
    batch = 2 * (-(-(4 << 20) // of_image) // 2) + 2
    x = torch.randn(batch, 4, *size, generator=generator).to(dtype)
    for kernel_size, lanes in ((1, "plane"), (3, "plane"), (3, "row"), (3, "batch")):
        conv = layer(4, 32, kernel_size, padding=kernel_size // 2, sparsity=0.6)
        if lanes == "row" and isa != "avx512":
            continue
        with kernels(isa, lanes, threads=2):
            whole = problem_of(conv, x.float(), statistics=False)
            whole = whole.in_bfloat16() if dtype == torch.bfloat16 else whole
            assert whole.residual is not None
            outputs = [conv(x), whole.run().y]
            few = []
            for part, beside in zip(x.chunk(2), whole.residual.chunk(2), strict=True):
                few.append([conv(part), whole._replace(x=part, residual=beside).run().y])
        for large, parts in zip(outputs, zip(*few, strict=True), strict=True):
            assert large.nbytes >= 4 << 20 > parts[0].nbytes
            assert torch.equal(large, torch.cat(parts))
