"""Forward and grad-input by the GPU's matrix units, against torch in float64 on the same weights.

`-k small` picks what the emulator's thread sanitizer build runs in a reasonable time.
"""

from __future__ import annotations

import dataclasses
from itertools import cycle

import pytest
import torch
from helpers import cuda_fused_cases
from helpers.cuda_conv_cases import (
    EMULATED_GPU,
    TWO,
    InTurn,
    conv_and_input,
    forward_and_grad_input,
    gpu_kernels,
)
from helpers.cuda_device import DEVICE, EMULATED, configure, emulated, kernels
from helpers.cuda_window_cases import (
    SHAPES,
    WindowsAtRandom,
    check_gathers,
    choices,
    gradient,
    model,
    problem,
    readers,
    small,
    units_of,
)
from helpers.formats import FORMATS
from helpers.matrix_units import as_operand, unit_of
from helpers.nn_cases import same_bits, swap_pattern

from dsr_kernels.backends.blocks import BLOCK_SIZES
from dsr_kernels.backends.cuda import call, plans, tensor_cores

TYPES = (torch.bfloat16, torch.float16, torch.float32)  # float32 as TF32
types = pytest.mark.parametrize("dtype", TYPES, ids=str)
EVERY = [(name, size) for name in SHAPES for size in BLOCK_SIZES]


def check(conv, x, choice=model, device=None, grad=None) -> list[torch.Tensor]:
    grad = gradient(conv, x) if grad is None else grad
    before = sum(launches().values())
    with gpu_kernels(window_gather=choice, device=device):
        found = forward_and_grad_input(conv, x, grad)
    assert sum(launches().values()) >= before + 2 or not EMULATED
    check_gathers(conv, x, grad, found)
    return found


def launches() -> dict[str, int]:
    """Of the kernels by windows; nothing where they are not emulated."""
    found = kernels().emulator.kernels() if EMULATED else {}
    return {name: n for name, n in found.items() if "window_gather" in name}


@pytest.mark.parametrize("name, size", EVERY)
def test_every_shape_and_block_size(name: str, size: int) -> None:
    dtype = TYPES[EVERY.index((name, size)) % 3]
    check(*problem(name, dtype, size))


@pytest.mark.parametrize("name", ["many channels, stride (2, 3)", "groups", "16 wide"])
@pytest.mark.parametrize(
    "size, dtype", [(1, TYPES[0]), (4, TYPES[0]), (16, TYPES[0]), (4, TYPES[2])]
)
def test_tilings(name: str, size: int, dtype: torch.dtype) -> None:
    """Blocks of source channels that cut blocks of weights, too."""
    conv, x = problem(name, dtype, size)
    grad = gradient(conv, x)
    tilings = InTurn(choices)
    for _ in tilings:
        check(conv, x, tilings, TWO, grad)


@pytest.mark.parametrize("seed", range(24))
def test_any_tiling(seed: int) -> None:
    names = list(SHAPES)
    conv, x = problem(names[seed % len(names)], TYPES[seed % 3], BLOCK_SIZES[seed % 5])
    configure(seed=seed)
    check(conv, x, WindowsAtRandom(seed).windows, TWO)
    configure()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", TYPES[::2], ids=str)
def test_memory_formats(name: str, dtype: torch.dtype) -> None:
    of_x, of_grad = FORMATS[name]
    conv, x = problem("stride (2, 3)", dtype, 4)
    check(conv, of_x(x), grad=of_grad(gradient(conv, x)))


@types
def test_patterns_from_empty_to_full(dtype: torch.dtype) -> None:
    conv, x = problem("7 wide, stride 2", dtype)
    for nnz in (0, 1, 2, conv.numel - 1, conv.numel):
        swap_pattern(conv, nnz, seed=nnz)
        conv.weight_values.data.mul_(0.1).copy_(as_operand(conv.weight_values.detach().to(dtype)))
        check(conv, x)


@pytest.mark.parametrize("dtype", TYPES[::2], ids=str)
def test_values_anywhere_in_memory(dtype: torch.dtype) -> None:
    """Chunks of four values need an address that is a multiple of 16; others are read apart."""
    conv, x = problem("16 wide", dtype, 8)
    expected = check(conv, x)
    for shift in (1, 2, 3):
        apart = torch.empty(conv.nnz + shift)[shift:].view(conv.weight_values.shape)
        conv.weight_values.data = apart.to(DEVICE).copy_(conv.weight_values.detach())
        assert same_bits(check(conv, x), expected)


@pytest.mark.parametrize("name", ["7 wide, stride 2", "groups", "1 x 1"])
@types
def test_the_same_bits_in_any_order(name: str, dtype: torch.dtype) -> None:
    conv, x = problem(name, dtype, 2)
    found = []
    for seed, order in enumerate(("random", "random", "ascending", "descending")):
        configure(seed=seed, order=order)
        found.append(check(conv, x, device=TWO))
    configure()
    assert all(same_bits(found[0], other) for other in found[1:])


def test_weights_are_rounded_to_the_type_of_activations() -> None:
    conv, x = problem("16 wide", torch.bfloat16, 4)
    rounded = conv.weight_values.detach().clone()
    conv.weight_values.data.mul_(1 + 2.0**-10)  # less than half a unit of the last place
    grad = gradient(conv, x)
    with gpu_kernels(window_gather=model):
        found = forward_and_grad_input(conv, x, grad)
        conv.weight_values.data.copy_(rounded)
        assert same_bits(forward_and_grad_input(conv, x, grad), found)


@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan], ids=str)
@types
def test_what_is_not_finite_stays_in_windows_that_read_it(value, size, dtype) -> None:
    """There it spoils rows without a weight, too; it may be infinite or NaN in any of them."""
    conv, x = problem("nearly empty", dtype, size, sparsity=0.9)
    with gpu_kernels(window_gather=model), torch.no_grad():
        expected = conv(x)
        x[1, 3, 2, 2], x[4, 20, 0, 4] = value, -value
        y = conv(x)
    own, windows = readers(conv, x)
    assert own.any() and windows[own].all() and (size == 16 or (windows & ~own).any())
    assert not y[windows].isfinite().any()
    assert same_bits([y[~windows]], [expected[~windows]])


# ---- fused --------------------------------------------------------------------------------------


def check_fused(name: str, dtype: torch.dtype, size: int, choice=model, device=None, **parts):
    conv, x = problem(name, dtype, size)
    p = cuda_fused_cases.problem(conv, x, **parts)
    with gpu_kernels(window_gather=choice, device=device):
        found = cuda_fused_cases.results(p)
    cuda_fused_cases.check(p, found, unit=unit_of(dtype))
    return found


@pytest.mark.parametrize(
    "name, size, parts",
    list(zip(list(SHAPES) * 2, cycle(BLOCK_SIZES), cycle(cuda_fused_cases.PARTS), strict=False)),
)
def test_fused(name: str, size: int, parts: str) -> None:
    for number, chosen in enumerate(("everything", parts)):
        check_fused(name, TYPES[(number + size) % 3], size, **cuda_fused_cases.PARTS[chosen])


@types
def test_fused_in_any_order(dtype: torch.dtype) -> None:
    found = []
    for seed, order in enumerate(("random", "ascending", "descending")):
        configure(seed=seed, order=order)
        found.append(check_fused("groups", dtype, 4, small(8), TWO))
    configure()
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in other)


# ---- instances, and the choice ------------------------------------------------------------------


@emulated
@types
def test_small_layers_by_every_kernel(dtype: torch.dtype) -> None:
    """Each thread block has several items of work, each of them several slabs."""
    before = launches()
    for units, size in zip(units_of(dtype.itemsize), (1, 8), strict=False):
        conv, x = problem("7 wide, stride 2", dtype, size)
        check(conv, x[:9], small(units), TWO)
        p = cuda_fused_cases.problem(conv, x[:9])
        with gpu_kernels(window_gather=small(units), device=TWO):
            found = cuda_fused_cases.results(p)
        cuda_fused_cases.check(p, found, unit=unit_of(dtype))
    kind = dict(zip(TYPES, ("<__nv_bfloat16", "<__half", "<float"), strict=True))[dtype]
    ours = {name: n for name, n in launches().items() if kind in name}
    assert len(ours) == 2 * len(units_of(dtype.itemsize))
    assert all(n > before[name] for name, n in ours.items())


def chosen(conv, x, direction: str, image: int | None = None) -> bool:
    """Whether the cost model takes windows; `image` elements lie between images of the result."""
    y = torch.empty(x.shape[0], conv.out_channels, *x.shape[2:])  # "same" padding
    with gpu_kernels(window_gather=None):
        sizes = tuple(x.shape), tuple(y.shape), cuda_fused_cases.shape_of(conv)
        density = plans.density_of(conv.nnz, sizes[2])
        source, dest = (x, y) if direction == "forward" else (y, x)
        strides = source.stride(), (image or dest.stride()[0], *dest.stride()[1:])
        found = plans.plan_of(
            direction, *sizes, density, conv.block_size, x.dtype, *strides, call.device_of(x), True
        )
    return found.kind == "window"


def test_windows_are_taken_only_where_they_are_asked_for() -> None:
    conv, x = conv_and_input(
        (64, 64, 3, (16, 16), 8), {"padding": 1, "block_size": 16}, torch.bfloat16
    )
    sizes = tuple(x.shape), (8, 64, 16, 16), cuda_fused_cases.shape_of(conv)
    where = 0.1, 16, x.dtype, x.stride(), x.stride(), EMULATED_GPU

    def taken() -> list[bool]:
        windows = tensor_cores.allowed(x, sizes[2])
        kinds = ("forward", "grad_weight")
        return [plans.plan_of(d, *sizes, *where, windows).kind == "window" for d in kinds]

    by_the_model = gpu_kernels(window_gather=None, window_grad_weight=None)
    with by_the_model, pytest.MonkeyPatch.context() as patch:
        assert taken() == [True, True]
        for unset in ("0", None):
            patch.delenv(tensor_cores.SWITCH)
            if unset:
                patch.setenv(tensor_cores.SWITCH, unset)
            assert taken() == [False, False]
        patch.setenv(tensor_cores.SWITCH, "yes")
        with pytest.raises(ValueError, match="DSR_GPU_TENSOR_CORES: expected 0 or 1, got 'yes'"):
            taken()


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_what_takes_windows(direction: str) -> None:
    """Many channels at 90 % do; layers of few channels never do."""
    arguments = {"padding": 1, "sparsity": 0.9, "block_size": 16}
    conv, x = conv_and_input((256, 256, 3, (14, 14), 8), arguments, torch.bfloat16)
    assert chosen(conv, x, direction)
    assert chosen(conv, x.float(), direction)
    for channels, groups in ((4, 1), (64, 16)):
        arguments = {"padding": 1, "sparsity": 0.0, "groups": groups}
        conv, x = conv_and_input((channels, channels, 3, (4, 4), 8), arguments, torch.bfloat16)
        assert not chosen(conv, x, direction)


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_positions_too_far_apart_have_no_windows(direction: str) -> None:
    """A warp's 8 positions of 8 images each must be within 32 bits of each other."""
    arguments = {"padding": 1, "sparsity": 0.5, "block_size": 16}
    conv, x = conv_and_input((256, 256, 3, (1, 1), 64), arguments, torch.bfloat16)
    assert chosen(conv, x, direction, image=2**24)
    assert not chosen(conv, x, direction, image=2**27)  # eight images are within 2**31


def test_kernels_that_are_not_compiled_are_named() -> None:
    conv, x = problem("16 wide", torch.bfloat16)
    for fields in ({"units": 3}, {"rows": 8}):
        with (
            gpu_kernels(window_gather=lambda *p, f=fields: dataclasses.replace(model(*p), **f)),
            pytest.raises(ValueError, match=r"window_gather: no kernel of \d+ rows and \d units"),
        ):
            conv(x)
    conv, x = problem("16 wide", torch.float32)
    four = lambda *p: dataclasses.replace(model(*p), units=4)  # noqa: E731
    message = "window_gather: no kernel of 16 rows and 4 units"
    with gpu_kernels(window_gather=four), pytest.raises(ValueError, match=message):
        conv(x)


def test_too_many_items_of_work_are_named() -> None:
    def many(*problem):
        found = dataclasses.replace(model(*problem), row_warps=1)
        layouts = tuple(dataclasses.replace(layout, tiles=2**29) for layout in found.layouts)
        return dataclasses.replace(found, layouts=layouts)

    conv, x = problem("16 wide", torch.bfloat16)
    message = "window_gather: too many tiles"
    with gpu_kernels(window_gather=many), pytest.raises(ValueError, match=message):
        conv(x)
