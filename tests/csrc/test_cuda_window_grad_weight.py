"""The GPU's grad-weight by matrix units: every tiling, against float64, the same bits.

`-k small` picks what the emulator's thread sanitizer build runs in a reasonable time.
"""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from helpers import cuda_fused_cases
from helpers.cuda_conv_cases import (
    EMULATED_GPU,
    SHAPES,
    TWO,
    InTurn,
    conv_and_input,
    direct,
    gpu_kernels,
)
from helpers.cuda_device import configure, emulated, kernels
from helpers.cuda_fused_cases import PARTS
from helpers.cuda_planner import (
    COMPUTE,
    HELD_TURNS,
    TURN_STEPS,
    forward_shape,
    options_of,
)
from helpers.cuda_window_grad_cases import (
    CASES,
    SMALL,
    check_sums,
    launched,
    problem,
    some,
    taken,
    windows,
)
from helpers.formats import FORMATS, gradient_of
from helpers.kernel_cases import in_blocks
from helpers.matrix_units import unit_of
from helpers.nn_cases import same_bits, swap_pattern

from dsr_kernels.backends import native
from dsr_kernels.backends.blocks import BLOCK_SIZES
from dsr_kernels.backends.cuda.plans import PassPlan
from dsr_kernels.backends.cuda.window_lists import build_windows

__all__ = ["taken"]  # a fixture

TYPES = (torch.bfloat16, torch.float16, torch.float32)  # float32 as TF32
types = pytest.mark.parametrize("dtype", TYPES, ids=str)
both = pytest.mark.parametrize("dtype", TYPES[::2], ids=str)
# Those of fewer than 8 outputs in a group have no windows.
WIDE = {
    name: (sizes, arguments)
    for name, (sizes, arguments) in SHAPES.items()
    if sizes[1] // arguments.get("groups", 1) >= 8 and sizes[1] < 1000
}


def gradient(conv, x, grad) -> list[torch.Tensor]:
    return list(torch.autograd.grad(conv(x), conv.weight_values, grad))


@pytest.mark.parametrize("name", WIDE)
@both
def test_every_shape(name: str, dtype: torch.dtype, taken: list) -> None:
    conv, x, grad = problem(*WIDE[name], dtype)
    with windows(device=EMULATED_GPU):
        check_sums(conv, x, grad)
    assert taken


@pytest.mark.parametrize("name", CASES)
@types
def test_every_tiling(name: str, dtype: torch.dtype, taken: list) -> None:
    conv, x, grad = problem(*CASES[name], dtype)
    tilings = InTurn(some)
    for _ in tilings:
        with gpu_kernels(direct, direct, TWO, tilings):
            check_sums(conv, x, grad)
    assert len(taken) > 10
    assert len({launched(p)["tile"] for p in taken}) > 2
    assert {launched(p)["compute_warps"] for p in taken} == {1, *COMPUTE}


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("name", ["16 wide", "7 wide", "groups", "stride 3", "1 x 1", "dilation"])
@both
def test_every_block_size(name: str, size: int, dtype: torch.dtype, taken: list) -> None:
    sizes, arguments = in_blocks(SHAPES[name], size)
    if sizes[1] // arguments.get("groups", 1) < 8:
        sizes = (sizes[0], 8 * sizes[1], *sizes[2:])
    conv, x, grad = problem(sizes, arguments, dtype)
    with windows():
        check_sums(conv, x[:9], grad[:9])
    assert taken


@pytest.mark.parametrize("name", FORMATS)
@both
def test_memory_formats(name: str, dtype: torch.dtype, taken: list) -> None:
    """Lanes run along columns or channels, of either operand."""
    of_x, of_grad = FORMATS[name]
    conv, x, grad = problem((20, 33, 3, (5, 7), 9), {"padding": 1, "stride": 2}, dtype)
    with windows():
        check_sums(conv, of_x(x), of_grad(grad))
        check_sums(conv, x, of_grad(grad))
    assert taken


@both
def test_patterns_from_empty_to_full(dtype: torch.dtype, taken: list) -> None:
    conv, x, grad = problem((5, 40, 3, (6, 7), 5), {"padding": 1}, dtype)
    with windows():
        for nnz in (0, 1, 2, 40, 1799, 1800):
            swap_pattern(conv, nnz, seed=nnz)
            check_sums(conv, x, grad)
    assert taken


@pytest.mark.parametrize("size", [1, 16])
def test_taps_that_meet_only_padding(size: int, taken: list) -> None:
    """Their gradient is 0, though infinity is elsewhere, and nothing else is disturbed by it."""
    sizes = (5, 32, 3, (3, 3), 5)
    arguments = {"padding": 9, "dilation": 9, "sparsity": 0.4, "block_size": size}
    conv, x = conv_and_input(sizes, arguments, torch.bfloat16)
    with windows():
        check_sums(conv, x, gradient_of(conv, x))
        y = conv(x)
        (found,) = gradient(conv, x, torch.full_like(y, torch.inf))
    dead = conv.col_indices % 9 != 4
    assert 0 < dead.sum() < dead.numel()
    assert (found[dead] == 0).all() and not found[~dead].isfinite().any()
    assert taken[0].unmet


def test_infinity_stays_in_its_channels() -> None:
    """Though a window computes more than what has a value."""
    conv, x = conv_and_input((12, 32, 3, (6, 6), 9), {"padding": 1}, torch.bfloat16)
    grad = gradient_of(conv, x)
    x[0, 3, 2, 2], grad[0, 5, 2, 2] = torch.inf, torch.nan
    with windows():
        (found,) = gradient(conv, x, grad)
    row = torch.repeat_interleave(torch.arange(32), conv.crow_indices.diff())
    touched = (row == 5) | (conv.col_indices // 9 == 3)
    assert found[~touched].isfinite().all() and not found[touched].isfinite().any()


@pytest.mark.parametrize("name", ["7 wide", "16 wide", "129 images"])
@pytest.mark.parametrize("warps", [1, 12])
def test_the_same_bits_in_any_order(name: str, warps: int) -> None:
    sizes, arguments = SHAPES[name]
    conv, x = conv_and_input((sizes[0], 40, *sizes[2:]), arguments, torch.bfloat16)
    grad = gradient_of(conv, x)
    found = []
    for seed, order in enumerate(("random", "random", "ascending", "descending")):
        configure(seed=seed, order=order)
        with windows(lambda tilings: dataclasses.replace(tilings[0], compute_warps=warps)):
            found.append(gradient(conv, x, grad))
    configure()
    assert all(same_bits(found[0], other) for other in found[1:])


def turns_of(conv, prepared: PassPlan) -> int:
    """The most that a thread block's warps have between them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_cuda", kernels())
        found = build_windows(conv.crow_indices, conv.col_indices, prepared.key)
    steps = found.bounds.diff(dim=1).flatten()[: -len(found.bounds) // prepared.key.classes]
    turns = (steps + TURN_STEPS - 1) // TURN_STEPS
    return max(part.sum() for part in turns.split(launched(prepared)["window_block"]))


def test_sums_go_from_tile_to_tile_in_registers_or_through_memory(taken: list) -> None:
    """In registers where no warp has more than two turns. Their order differs from memory's."""
    conv, x = conv_and_input((16, 64, 3, (8, 8), 33), {"padding": 1, "sparsity": 0}, torch.float16)
    grad = gradient_of(conv, x)
    found = []
    for warps in COMPUTE:

        def choose(tilings, warps=warps):
            kind = 16, 32, 4
            one = next(t for t in tilings if (t.channel_block, t.tile, t.window_block) == kind)
            return dataclasses.replace(one, compute_warps=warps, grad_warps=1, tiles_per_split=5)

        with windows(choose):
            check_sums(conv, x, grad)
            found += gradient(conv, x, grad)
    turns = [turns_of(conv, p) for p in taken[::2]]
    held = [
        t <= HELD_TURNS * launched(p)["compute_warps"]
        for t, p in zip(turns, taken[::2], strict=True)
    ]
    assert turns == [20] * 3 and held == [False, True, True]
    assert same_bits(found[1:2], found[2:])
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5 * found[1].abs().max())


@pytest.mark.parametrize("seed", range(24))
def test_any_layout(seed: int, taken: list) -> None:
    """Chunks, pitches, blocks and splits that need not be good ones."""
    chance = random.Random(seed)

    def choose(found):
        tiling = chance.choice(found)
        (c,) = shape.classes
        width = chance.randint(1, c.cols)
        steps = shape.row_step, shape.col_step
        groups = -(-x.shape[0] * x.element_size() // 16)
        layout = chance.choice(list(options_of(c, steps, groups, tiling.tile, width)))
        tiles = chance.randint(max(1, layout.tiles // 4), layout.tiles)
        few = chance.randint(1, min(8, shape.source_channels))
        return dataclasses.replace(
            tiling,
            layout=layout,
            channel_block=few,
            tiles_per_split=tiles,
            window_block=chance.randint(1, tiling.window_block),
            compute_warps=chance.choice((1, tiling.compute_warps)),
        )

    names = [name for name in WIDE if "1 x 1" not in name and "column" not in name]
    conv, x, grad = problem(*WIDE[chance.choice(names)], TYPES[seed % 3])
    shape = forward_shape(x.shape[1:], conv(x).shape[1:], cuda_fused_cases.shape_of(conv))
    configure(seed=seed)
    with windows(choose):
        check_sums(conv, x, grad)
    configure()
    assert taken


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", CASES)
def test_fused(name: str, parts: str, taken: list) -> None:
    dtype = TYPES[(list(CASES).index(name) + list(PARTS).index(parts)) % 3]
    p = cuda_fused_cases.problem(*conv_and_input(*CASES[name], dtype), **PARTS[parts])
    with windows():
        found = cuda_fused_cases.results(p)
    cuda_fused_cases.check(p, found, unit=unit_of(dtype))
    assert taken


@pytest.mark.parametrize("of_x", FORMATS)
def test_fused_memory_formats(of_x: str, taken: list) -> None:
    p = cuda_fused_cases.problem(*conv_and_input(*CASES["ragged windows"], torch.bfloat16))
    p = p._replace(x=FORMATS[of_x][0](p.x), grad=FORMATS[of_x][1](p.grad))
    with windows():
        cuda_fused_cases.check(p, cuda_fused_cases.results(p))
    assert taken


# ---- instances, and what is refused --------------------------------------------------------------


def small(found):
    one = min(found, key=lambda t: (t.tile, t.compute_warps))
    return dataclasses.replace(one, channel_block=2, window_block=1, tiles_per_split=2)


def few_warps(found):
    """Sums that go from tile to tile through memory."""
    one = min(found, key=lambda t: (t.tile, -t.window_block))
    return dataclasses.replace(one, channel_block=4, compute_warps=1, tiles_per_split=2)


def launches() -> dict[str, int]:
    found = kernels().emulator.kernels()
    return {name: n for name, n in found.items() if "window_grad_weight" in name}


@emulated
@types
def test_small_layers_by_every_kernel(dtype: torch.dtype) -> None:
    before = launches()
    kind = dict(zip(TYPES, ("<__nv_bfloat16", "<__half", "<float"), strict=True))[dtype]
    conv, x, grad = problem(*SMALL, dtype)
    with windows(few_warps):
        check_sums(conv, x, grad)
    with windows(small):
        check_sums(conv, x, grad)
        p = cuda_fused_cases.problem(conv.requires_grad_(False), x)
        found = cuda_fused_cases.results(p)
    cuda_fused_cases.check(p, found, unit=unit_of(dtype))
    after = launches()
    assert len(after) == 6
    assert all((after[name] > before[name]) == (kind in name) for name in after)
