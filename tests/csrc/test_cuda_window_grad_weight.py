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
    check_grad_weight,
    conv_and_input,
    direct,
    gpu_kernels,
)
from helpers.cuda_device import configure, emulated, kernels
from helpers.cuda_fused_cases import PARTS
from helpers.formats import FORMATS, gradient_of
from helpers.kernel_cases import in_blocks
from helpers.nn_cases import same_bits, swap_pattern

from dsr_kernels.backends.blocks import BLOCK_SIZES
from dsr_kernels.backends.cuda import call
from dsr_kernels.backends.cuda.layout import options_of
from dsr_kernels.backends.cuda.passes import forward_shape
from dsr_kernels.backends.cuda.window_grad_weight import (
    COMPUTE,
    WindowGradWeightPass,
    window_grad_weight_tilings,
)

LOW = pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
# Those of fewer than 8 outputs in a group have no windows.
WIDE = {
    name: (sizes, arguments)
    for name, (sizes, arguments) in SHAPES.items()
    if sizes[1] // arguments.get("groups", 1) >= 8 and sizes[1] < 1000
}
# Windows that end early and several of them, groups, strides, dilation, several slabs.
CASES = {
    "ragged windows": ((6, 41, 3, (5, 9), 9), {"padding": 1, "sparsity": 0.8}),
    "groups, stride (2, 3)": (
        (12, 66, (3, 2), (8, 11), 13),
        {"padding": 1, "stride": (2, 3), "groups": 3, "sparsity": 0.5},
    ),
    "dilation": ((9, 16, 3, (7, 6), 8), {"padding": 2, "dilation": 2, "sparsity": 0.6}),
    "1 x 1": ((40, 24, 1, (5, 9), 7), {"sparsity": 0.7}),
}


def windows(choose=None, device=TWO):
    """Inside, every grad-weight that can goes by windows; by the tiling that `choose` picks."""
    choose = choose or (lambda found: min(found, key=lambda t: t.clocks))

    def chosen(*problem):
        found = list(window_grad_weight_tilings(*problem))
        return choose(found) if found else None

    return gpu_kernels(grad_weight=direct, window_grad_weight=chosen, device=device)


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """The passes by windows that ran; there must be some."""
    found, by_windows = [], call.grad_weight_by_windows

    def noted(*arguments, **more):
        found.append(arguments[5])
        return by_windows(*arguments, **more)

    monkeypatch.setattr(call, "grad_weight_by_windows", noted)
    return found


def choices(*problem) -> list:
    """What there is to choose from, and with few channels in a slab, few tiles in a split.

    Also with a single warp that computes: it has more turns than it has registers for.
    """
    found = list(window_grad_weight_tilings(*problem))
    few = [dataclasses.replace(t, channel_block=min(3, t.channel_block)) for t in found]
    few += [dataclasses.replace(t, compute_warps=1) for t in found]
    short = [dataclasses.replace(t, tiles_per_split=n) for t in few for n in (1, 2)]
    cut = [dataclasses.replace(t, clocks=0.0) for t in found + few + short]
    return list(dict.fromkeys(cut))


def some(*problem) -> list:
    found = choices(*problem)
    return random.Random(5).sample(found, min(24, len(found)))


def gradient(conv, x, grad) -> list[torch.Tensor]:
    return list(torch.autograd.grad(conv(x), conv.weight_values, grad))


@pytest.mark.parametrize("name", WIDE)
def test_every_shape(name: str, taken: list) -> None:
    conv, x = conv_and_input(*WIDE[name], torch.bfloat16)
    with windows(device=EMULATED_GPU):
        check_grad_weight(conv, x, gradient_of(conv, x))
    assert taken


@pytest.mark.parametrize("name", CASES)
@LOW
def test_every_tiling(name: str, dtype: torch.dtype, taken: list) -> None:
    conv, x = conv_and_input(*CASES[name], dtype)
    grad = gradient_of(conv, x)
    tilings = InTurn(some)
    for _ in tilings:
        with gpu_kernels(direct, direct, TWO, tilings):
            check_grad_weight(conv, x, grad)
    assert len(taken) > 10
    assert len({p.launch.tile for p in taken}) > 2
    assert {p.launch.compute_warps for p in taken} == {1, *COMPUTE}


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("name", ["16 wide", "7 wide", "groups", "stride 3", "1 x 1", "dilation"])
def test_every_block_size(name: str, size: int, taken: list) -> None:
    sizes, arguments = in_blocks(SHAPES[name], size)
    if sizes[1] // arguments.get("groups", 1) < 8:
        sizes = (sizes[0], 8 * sizes[1], *sizes[2:])
    conv, x = conv_and_input(sizes, arguments, torch.bfloat16)
    with windows():
        check_grad_weight(conv, x[:9], gradient_of(conv, x[:9]))
    assert taken


@pytest.mark.parametrize("name", FORMATS)
def test_memory_formats(name: str, taken: list) -> None:
    """Lanes run along columns or channels, of either operand."""
    of_x, of_grad = FORMATS[name]
    conv, x = conv_and_input((20, 33, 3, (5, 7), 9), {"padding": 1, "stride": 2}, torch.bfloat16)
    grad = gradient_of(conv, x)
    with windows():
        check_grad_weight(conv, of_x(x), of_grad(grad))
        check_grad_weight(conv, x, of_grad(grad))
    assert taken


def test_patterns_from_empty_to_full(taken: list) -> None:
    conv, x = conv_and_input((5, 40, 3, (6, 7), 5), {"padding": 1}, torch.bfloat16)
    grad = gradient_of(conv, x)
    with windows():
        for nnz in (0, 1, 2, 40, 1799, 1800):
            swap_pattern(conv, nnz, seed=nnz)
            check_grad_weight(conv, x, grad)
    assert taken


@pytest.mark.parametrize("size", [1, 16])
def test_taps_that_meet_only_padding(size: int, taken: list) -> None:
    """Their gradient is 0, though infinity is elsewhere, and nothing else is disturbed by it."""
    sizes = (5, 32, 3, (3, 3), 5)
    arguments = {"padding": 9, "dilation": 9, "sparsity": 0.4, "block_size": size}
    conv, x = conv_and_input(sizes, arguments, torch.bfloat16)
    with windows():
        check_grad_weight(conv, x, gradient_of(conv, x))
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


def test_sums_are_the_same_from_turn_to_turn_and_from_tile_to_tile(taken: list) -> None:
    """In registers where no warp has more than two turns, else in memory: the same bits."""
    conv, x = conv_and_input((16, 64, 3, (8, 8), 33), {"padding": 1, "sparsity": 0}, torch.float16)
    grad = gradient_of(conv, x)
    found = []
    for warps in COMPUTE:  # 20 turns

        def choose(tilings, warps=warps):
            one = next(t for t in tilings if t.channel_block == 16 and t.tile == 32)
            return dataclasses.replace(one, compute_warps=warps, grad_warps=1, tiles_per_split=5)

        with windows(choose):
            found.append(gradient(conv, x, grad))
    assert same_bits(found[0], found[1]) and same_bits(found[0], found[2])
    assert [p.launch.compute_warps for p in taken] == list(COMPUTE)


@pytest.mark.parametrize("seed", range(24))
def test_any_layout(seed: int, taken: list) -> None:
    """Chunks, pitches, blocks and splits that need not be good ones."""
    chance = random.Random(seed)

    def choose(found):
        tiling = chance.choice(found)
        (c,) = shape.classes
        width = chance.randint(1, c.cols)
        steps = shape.row_step, shape.col_step
        groups = -(-x.shape[0] // 8)
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
    conv, x = conv_and_input(*WIDE[chance.choice(names)], torch.bfloat16)
    shape = forward_shape(x.shape[1:], conv(x).shape[1:], cuda_fused_cases.shape_of(conv))
    configure(seed=seed)
    with windows(choose):
        check_grad_weight(conv, x, gradient_of(conv, x))
    configure()
    assert taken


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("name", CASES)
def test_fused(name: str, parts: str, taken: list) -> None:
    dtype = torch.float16 if name == "dilation" else torch.bfloat16
    p = cuda_fused_cases.problem(*conv_and_input(*CASES[name], dtype), **PARTS[parts])
    with windows():
        found = cuda_fused_cases.results(p)
    cuda_fused_cases.check(p, found)
    assert taken


@pytest.mark.parametrize("of_x", FORMATS)
def test_fused_memory_formats(of_x: str, taken: list) -> None:
    p = cuda_fused_cases.problem(*conv_and_input(*CASES["ragged windows"], torch.bfloat16))
    p = p._replace(x=FORMATS[of_x][0](p.x), grad=FORMATS[of_x][1](p.grad))
    with windows():
        cuda_fused_cases.check(p, cuda_fused_cases.results(p))
    assert taken


# ---- instances, and what is refused --------------------------------------------------------------

# Two thread blocks at least, each with several tiles and steps, and a warp with several turns.
SMALL = (4, 20, 3, (9, 8), 9), {"padding": 1, "stride": 2, "sparsity": 0.2}


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
@LOW
def test_small_layers_by_every_kernel(dtype: torch.dtype) -> None:
    before = launches()
    kind = {torch.bfloat16: "<__nv_bfloat16", torch.float16: "<__half"}[dtype]
    conv, x = conv_and_input(*SMALL, dtype)
    grad = gradient_of(conv, x)
    with windows(few_warps):
        check_grad_weight(conv, x, grad)
    with windows(small):
        check_grad_weight(conv, x, grad)
        p = cuda_fused_cases.problem(conv.requires_grad_(False), x)
        found = cuda_fused_cases.results(p)
    cuda_fused_cases.check(p, found)
    after = launches()
    assert len(after) == 4
    assert all((after[name] > before[name]) == (kind in name) for name in after)


def test_4_byte_elements_are_refused(taken: list) -> None:
    conv, x = conv_and_input(*SMALL, torch.bfloat16)
    with windows():
        gradient(conv, x, gradient_of(conv, x))
        launch = taken[0].launch
        nothing = (0, 0, 0, 0, 0, 1, 5)
        with pytest.raises(ValueError, match="window_grad_weight: no kernel of 4-byte elements"):
            kernels().window_grad_weight((0, 0), launch, nothing, "float32", 0, 0, 0, 0, None)


def test_warps_are_needed_for_everything(taken: list) -> None:
    conv, x = conv_and_input(*SMALL, torch.bfloat16)

    def choose(found):
        return dataclasses.replace(found[0], compute_warps=16, grad_warps=4)

    with windows(choose), pytest.raises(ValueError, match="16 that compute and 4 that bring the"):
        gradient(conv, x, gradient_of(conv, x))


def test_shared_memory_is_what_was_planned(taken: list) -> None:
    conv, x = conv_and_input((64, 64, 3, (16, 16), 33), {"padding": 1, "sparsity": 0.98},
                             torch.bfloat16)  # fmt: skip
    with windows(lambda found: max(found, key=lambda t: t.tile * t.channel_block)):
        launched = call.grad_weight_pass(
            tuple(x.shape), (33, 64, 16, 16), cuda_fused_cases.shape_of(conv), 0.02, 1, x.dtype,
            x.stride(), x.stride(), TWO,
        ).launch  # fmt: skip
    assert 0.5 < launched.shared_bytes / TWO.shared_per_block <= 1
    assert not taken


@pytest.mark.parametrize(
    "outputs, groups, dtype, expected",
    [
        (16, 1, torch.bfloat16, True),
        (7, 1, torch.bfloat16, False),
        (32, 8, torch.bfloat16, False),
        (16, 1, torch.float32, False),
        (16, 1, torch.float64, False),
    ],
)
def test_who_has_windows(outputs, groups, dtype, expected: bool) -> None:
    conv, x = conv_and_input((8, outputs, 3, (8, 8), 9), {"padding": 1, "groups": groups}, dtype)
    with windows():
        found = call.grad_weight_pass(
            tuple(x.shape), (9, outputs, 8, 8), cuda_fused_cases.shape_of(conv), 0.3, 1, dtype,
            x.stride(), (outputs * 64, 64, 8, 1), TWO,
        )  # fmt: skip
    assert isinstance(found, WindowGradWeightPass) == expected


def test_blocks_of_outputs_take_windows() -> None:
    """They share what windows read; single weights at 2 % do not."""
    conv, x = conv_and_input((64, 64, 3, (16, 16), 8), {"padding": 1}, torch.bfloat16)

    def taken_at(density: float, size: int) -> bool:
        found = call.grad_weight_pass(
            (128, 64, 16, 16), (128, 64, 16, 16), cuda_fused_cases.shape_of(conv), density, size,
            x.dtype, x.stride(), x.stride(), EMULATED_GPU,
        )  # fmt: skip
        return isinstance(found, WindowGradWeightPass)

    with gpu_kernels(device=EMULATED_GPU):
        assert taken_at(0.1, 16)
        assert not taken_at(0.01, 1)
