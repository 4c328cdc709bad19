"""The GPU's fused convolutions: every part of them, every instance, the same bits.

`-k small` picks what the emulator's thread sanitizer build runs in a reasonable time.
"""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from helpers import cuda_fused_cases
from helpers.cuda_conv_cases import (
    SHAPES,
    TWO,
    AtRandom,
    InTurn,
    conv_and_input,
    direct,
    floats,
    gather_choices,
    gpu_kernels,
    grad_weight_choices,
    small_gather,
    small_grad_weight,
)
from helpers.cuda_device import configure, emulated, kernels
from helpers.cuda_fused_cases import (
    PARTS,
    Meaning,
    Problem,
    by_operations,
    check,
    check_statistics,
    meaning,
    results,
)
from helpers.cuda_planner import GATHER_VARIANTS, GRAD_WEIGHT_UNITS
from helpers.formats import FORMATS, sliced
from torch import Tensor

from dsr_kernels.backends import cpu_fused
from dsr_kernels.backends.cuda import fused
from dsr_kernels.backends.fused import Affine, Epilogue
from dsr_kernels.ops.fused import composed, library

# Without those that the direct kernels do: see test_what_is_left_to_plain_operations.
SLABS = [name for name in SHAPES if name not in ("empty rows", "dilated by 40")]
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def problem(sizes: tuple, arguments: dict, dtype=torch.float32, **parts) -> Problem:
    return cuda_fused_cases.problem(*conv_and_input(sizes, arguments, dtype), **parts)


def by_kernels(p: Problem) -> dict[str, Tensor]:
    with gpu_kernels():
        return results(p)


def same_bits(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "name, dtype, parts",
    list(zip(SLABS, cycle(FLOATS), cycle(PARTS), strict=False)),
    ids=str,
)
def test_shapes(name: str, dtype: torch.dtype, parts: str) -> None:
    """Lanes and chunks that end early, every class of a stride, empty rows, dead taps."""
    sizes, arguments = SHAPES[name]
    for chosen in {"everything", parts}:
        p = problem(sizes, arguments, dtype, **PARTS[chosen])
        check(p, by_kernels(p))


@floats
def test_the_cpus_kernels_agree(dtype: torch.dtype) -> None:
    p = problem((9, 12, 3, (16, 16), 33), {"padding": 1}, dtype)
    ours, theirs = by_kernels(p), results(p.to(dtype, torch.float32), cpu_fused)
    check(p, theirs)
    check(p, ours, Meaning(theirs, meaning(p).exact))


def test_empty_rows() -> None:
    """By slabs, though the direct kernels would be chosen."""

    def whole(choices):
        return lambda *problem: max(choices(*problem), key=lambda t: t.channel_block)

    p = problem(*SHAPES["empty rows"])
    assert not p.pattern[0].diff().all()
    with gpu_kernels(whole(gather_choices), whole(grad_weight_choices)):
        check(p, results(p))


@pytest.mark.parametrize("parts", PARTS)
@floats
def test_parts(parts: str, dtype: torch.dtype) -> None:
    p = problem((6, 18, 3, (6, 9), 9), {"padding": 1}, dtype, **PARTS[parts])
    check(p, by_kernels(p))
    p = p._replace(bias=None, out_scale=p.out_scale.abs())
    check(p, by_kernels(p))


GATHERS = {
    "stride (2, 3)": (
        (12, 18, (3, 2), (8, 11), 13),
        {"padding": 1, "stride": (2, 3), "groups": 3, "sparsity": 0.3},
    ),
    "1 x 1": ((20, 36, 1, (9, 11), 17), {"groups": 2, "sparsity": 0.3}),
}


def some_gathers(*problem):
    found = gather_choices(*problem)
    return found[:: -(-len(found) // 20)]


@pytest.mark.parametrize("name", GATHERS)
@floats
def test_every_tiling(name: str, dtype: torch.dtype) -> None:
    """Elements have the same bits, however cut; sums over channels depend on the cut."""
    p = problem(*GATHERS[name], dtype)
    bits, plain = by_kernels(p), meaning(p)
    tilings = InTurn(some_gathers)
    splits = InTurn(grad_weight_choices)
    for number in tilings:
        with gpu_kernels(tilings, splits, device=TWO):
            found = results(p)
        splits.number += 7
        assert all(torch.equal(found[n], bits[n]) for n in ("y", "folded", "gx")), number
        check(p, found, plain)


@pytest.mark.parametrize("seed", range(12))
def test_any_tiling(seed: int) -> None:
    name = SLABS[seed * 7 % len(SLABS)]
    p = problem(*SHAPES[name], FLOATS[seed % 3])
    chosen = AtRandom(seed)

    def or_first(choose, tilings):
        return lambda *problem: choose(*problem) or tilings(*problem)[0]

    choices = (
        or_first(chosen.gather, gather_choices),
        or_first(chosen.grad_weight, grad_weight_choices),
    )
    configure(seed=seed)
    with gpu_kernels(*choices, TWO):
        found = results(p)
    check(p, found)


@pytest.mark.parametrize("of_x", FORMATS)
@pytest.mark.parametrize("of_rest", ["NCHW", "channels_last", "sliced"])
def test_memory_formats(of_x: str, of_rest: str) -> None:
    """Tensors that lie otherwise than what they are added to; views lie among NaN."""
    lies_as = FORMATS.get(of_rest, (sliced,))[0]
    p = problem((20, 33, 3, (5, 7), 9), {"padding": 1, "stride": 2})
    p = p._replace(
        x=FORMATS[of_x][0](p.x),
        grad=FORMATS[of_x][1](p.grad),
        residual=lies_as(p.residual),
        passed=lies_as(p.passed),
        by_statistics=p.by_statistics._replace(y=lies_as(p.by_statistics.y)),
    )
    check(p, by_kernels(p))


def test_numbers_that_are_not_contiguous() -> None:
    def apart(channels: int, like: Tensor) -> Affine:
        made = torch.full((channels, 2), torch.nan)
        made[:, 0] = torch.randn(channels)
        return Affine(*[made.to(like)[:, 0]] * 3)

    p = problem((6, 18, 3, (6, 9), 9), {"padding": 1}, affine_of=apart)
    check(p, by_kernels(p))


@pytest.mark.parametrize("name", ["7 wide", "stride 3", "groups", "1 x 1", "129 images"])
@floats
def test_the_same_bits_in_any_order(name: str, dtype: torch.dtype) -> None:
    p = problem(*SHAPES[name], dtype)
    found = []
    for seed, order in enumerate(("random", "random", "ascending", "descending")):
        configure(seed=seed, order=order)
        with gpu_kernels(device=TWO):
            found.append(results(p))
    configure()
    assert all(same_bits(found[0], other) for other in found[1:])


# ---- statistics ---------------------------------------------------------------------------------


def test_statistics_far_from_zero() -> None:
    """A mean of 1000 beside a deviation of 1, in and out."""

    def far(channels: int, like: Tensor) -> Affine:
        return Affine(*(torch.full((channels,), n).to(like) for n in (1000.0, 1.0, 0.5)))

    p = problem((9, 12, 3, (16, 16), 33), {"padding": 1}, affine_of=far, added=False)
    p = p._replace(x=p.x + 1000, bias=torch.full_like(p.bias, 1000))
    found = by_kernels(p)
    assert (found["mean"] - 1000).abs().max() < 10 and found["variance"].max() < 50
    check_statistics(found)
    check(p, found)


def test_a_constant_has_the_variance_of_rounding() -> None:
    p = problem((4, 6, 3, (5, 5), 7), {"padding": 1}, relu=False, affine=False, added=False)
    found = by_kernels(p._replace(x=torch.zeros_like(p.x), bias=torch.full_like(p.bias, 7 / 3)))
    assert (found["mean"] - 7 / 3).abs().max() <= 4e-7
    assert (found["variance"] <= 4e-13).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("relu", [True, False])
@floats
def test_nan_and_infinity_go_where_torchs_go(value: float, relu: bool, dtype: torch.dtype) -> None:
    p = problem((9, 12, 3, (8, 16), 9), {"padding": 1}, dtype, relu=relu)
    p.x[2, 3, 4, 5] = value
    p.grad[3, 4, 5, 6] = value
    found = by_kernels(p)
    expected = results(p.to(dtype, torch.float32), composed)
    expected["mean"] = expected["y"].double().mean((0, 2, 3))  # var_mean's is NaN beside infinity
    for name, tensor in found.items():
        for test in (torch.isnan, torch.isposinf, torch.isneginf):
            assert torch.equal(test(tensor.cpu()), test(expected[name])), (name, test)
    assert not found["gx"].isfinite().all()


# ---- instances, and what is left to plain operations --------------------------------------------

SMALL = (4, 12, 3, (33, 32), 9), {"padding": 1, "stride": 2}


def launches() -> dict[str, int]:
    found = kernels().emulator.kernels()
    ours = {name: n for name, n in found.items() if "fused_" in name or "combine_" in name}
    return {name: n for name, n in ours.items() if "window_" not in name}  # theirs: elsewhere


@emulated
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_small_layers_by_every_kernel(dtype: torch.dtype) -> None:
    before = launches()
    kind = {torch.float32: "<float", torch.bfloat16: "<__nv_bfloat16", torch.float16: "<__half"}
    p = problem(*SMALL, dtype)
    p = p._replace(
        x=p.x[:5], grad=p.grad[:5], residual=p.residual[:5], passed=p.passed[:5],
        by_statistics=p.by_statistics._replace(y=p.by_statistics.y[:5]),
    )  # fmt: skip
    units = cycle(GRAD_WEIGHT_UNITS[dtype.itemsize])
    for rows, of_lane in GATHER_VARIANTS[dtype.itemsize]:
        with gpu_kernels(small_gather(rows, of_lane), small_grad_weight(next(units)), device=TWO):
            found = results(p)
        check(p, found)
    for name, n in launches().items():
        assert n > before[name] or ("<" in name and kind[dtype] not in name), name


def test_what_is_left_to_plain_operations() -> None:
    """Nothing is written then; the operations fall back."""
    p = problem((6, 18, 3, (6, 9), 9), {"padding": 1}, torch.float64)
    y = torch.full_like(p.grad, torch.nan)
    forward = p.x, p.prologue, p.values, p.bias, *p.pattern
    mean, variance = p.out_scale.new_empty(2, 18)
    epilogue = Epilogue(None, p.residual, False, (mean, variance))
    with gpu_kernels():
        assert fused.sparse_conv2d_fused(y, *forward, epilogue, p.shape) is None
        assert y.isnan().all()
        found = library.sparse_conv2d_fused(*forward, p.residual, True, p.shape)
    expected = results(p.to(torch.float64, torch.float64), composed)
    for tensor, name in zip(found, ("y", "mean", "variance"), strict=True):
        assert torch.allclose(tensor.cpu(), expected[name]), name


@pytest.mark.parametrize("choice", [None, direct])
def test_operations(choice) -> None:
    """As `library` calls them, with slabs and without."""
    p = problem((6, 18, 3, (6, 9), 9), {"padding": 1})
    with gpu_kernels(choice, choice):
        found = by_operations(p)
    assert len(found) == 8
    check(p, found)


def test_no_images() -> None:
    p = problem((4, 6, 3, (5, 5), 1), {"padding": 1})
    with gpu_kernels():
        gx, gscale, gshift = library.sparse_conv2d_fused_grad_input(
            p.grad[:0], None, p.values, *p.pattern, p.x[:0], p.prologue, None, p.shape
        )
    assert gx.shape == (0, 4, 5, 5) and not gscale.any() and not gshift.any()
