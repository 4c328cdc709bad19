"""The GPU's convolution kernels under every tiling: each instance, each branch, the same bits.

`-k small` picks what the emulator's thread sanitizer build runs in a reasonable time.
"""

from __future__ import annotations

import dataclasses
import re
from itertools import cycle

import pytest
import torch
from helpers import cuda_fused_cases
from helpers.convolutions import convolutions, image
from helpers.cuda_conv_cases import (
    DTYPES,
    SHAPES,
    TWO,
    AtRandom,
    InTurn,
    check_grad_weight,
    conv_and_input,
    direct,
    dtypes,
    floats,
    forward_and_grad_input,
    gather_choices,
    gpu_kernels,
    grad_weight_choices,
    small_gather,
    small_grad_weight,
)
from helpers.cuda_device import DEVICE, configure, emulated, kernels
from helpers.cuda_planner import (
    GATHER_VARIANTS,
    GRAD_WEIGHT_UNITS,
    choose_gather,
    choose_grad_weight,
)
from helpers.formats import FORMATS, gradient_of
from helpers.kernel_cases import CASES
from helpers.nn_cases import check_layer, check_results, layer, results, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.backends.cuda import plans
from dsr_kernels.backends.cuda.plans import Device

# Between them: all numbers of warps side by side along channels, sets of channels that do not
# divide, groups, one class and several, several launches, taps that meet nothing.
GATHERS = {
    "many outputs": ((6, 70, 3, (5, 9), 9), {"padding": 1, "sparsity": 0.6}),
    "many channels, stride 2": ((70, 7, 3, (9, 8), 5), {"padding": 1, "stride": 2}),
    "groups, stride (2, 3)": (
        (12, 18, (3, 2), (8, 11), 13),
        {"padding": 1, "stride": (2, 3), "groups": 3, "sparsity": 0.3},
    ),
    "1 x 1, groups": ((20, 36, 1, (9, 11), 17), {"groups": 2, "sparsity": 0.3}),
}
GRAD_WEIGHTS = {
    "many outputs": ((5, 37, 3, (4, 7), 9), {"padding": 1, "sparsity": 0.9}),
    "groups, stride (2, 3)": GATHERS["groups, stride (2, 3)"],
    "1 x 1, groups": ((10, 8, 1, (5, 9), 13), {"groups": 2, "sparsity": 0.3}),
}


@pytest.mark.parametrize("name", GATHERS)
@floats
def test_every_tiling_of_forward_and_grad_input(name: str, dtype: torch.dtype) -> None:
    """The same bits: a sum runs over a channel's non-zeros in the pattern's order, however cut."""
    conv, x = conv_and_input(*GATHERS[name], dtype)
    grad = gradient_of(conv, x)
    with gpu_kernels():
        expected = forward_and_grad_input(conv, x, grad)
        check_results(conv, x, grad, expected)
    tilings = InTurn(gather_choices)
    for number in tilings:
        with gpu_kernels(gather=tilings, device=TWO):
            assert same_bits(forward_and_grad_input(conv, x, grad), expected), number


@pytest.mark.parametrize("name", GRAD_WEIGHTS)
@floats
def test_every_tiling_of_grad_weight(name: str, dtype: torch.dtype) -> None:
    conv, x = conv_and_input(*GRAD_WEIGHTS[name], dtype)
    grad = gradient_of(conv, x)
    tilings = InTurn(grad_weight_choices)
    for _ in tilings:
        with gpu_kernels(grad_weight=tilings, device=TWO):
            check_grad_weight(conv, x, grad)


@pytest.mark.parametrize("name, kib", list(zip(CASES, cycle((8, 16, 48)), strict=False)))
def test_little_shared_memory(name: str, kib: int) -> None:
    """Slabs of a channel or two, and none at all where kernels reach far."""
    conv, x = conv_and_input(*SHAPES[name])
    with gpu_kernels(device=Device(2, kib << 10)):
        check_layer(conv, x[:5])


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    case=convolutions(),
    dtype=st.sampled_from(DTYPES),
    formats=st.sampled_from(sorted(FORMATS)),
    kib=st.sampled_from((8, 48, 227)),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_and_tiling(case, dtype, formats: str, kib: int, seed: int) -> None:
    arguments, shape, sparsity = case
    weights = torch.float64 if dtype == torch.float64 else torch.float32
    conv = layer(**arguments, sparsity=sparsity, dtype=weights).to(DEVICE)
    x = image(*shape).to(DEVICE, dtype)
    of_x, of_grad = FORMATS[formats]
    grad = of_grad(gradient_of(conv, x))
    chosen = AtRandom(seed)
    configure(seed=seed)
    with gpu_kernels(chosen.gather, chosen.grad_weight, Device(2, kib << 10)):
        check_layer(conv, of_x(x), grad)


@pytest.mark.parametrize("name", ["7 wide", "stride 3", "groups", "1 x 1", "129 images"])
@dtypes
def test_the_same_bits_in_any_order(name: str, dtype: torch.dtype) -> None:
    conv, x = conv_and_input(*SHAPES[name], dtype)
    grad = gradient_of(conv, x)
    found = []
    for seed, order in enumerate(("random", "random", "ascending", "descending")):
        configure(seed=seed, order=order)
        with gpu_kernels(device=TWO):
            found.append(results(conv, x, grad))
    configure()
    assert all(same_bits(found[0], other) for other in found[1:])


# ---- instances ----------------------------------------------------------------------------------

# Each thread block has several items of work, each of them several slabs.
SMALL = (4, 12, 3, (33, 32), 9), {"padding": 1, "stride": 2}
SMALL_DIRECT = (2, 3, 3, (6, 5), 9), {"padding": 1, "stride": (2, 1), "sparsity": 0.9}
TYPES = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "__nv_bfloat16",
    torch.float16: "__half",
}


def instances() -> dict[tuple[str, str], int]:
    """(name, type of activations or "") of each kernel of convolutions: how often launched."""
    ours = r"(\w*(?:gather|grad_weight|arrange|reduce_splits)\w*)(?:<(\w+), .*>)?$"
    found = {
        (re.search(ours, name), name): launches
        for name, launches in kernels().emulator.kernels().items()
        if "fused_" not in name and "window_" not in name  # those have tests of their own
    }
    return {(name, m.group(2) or ""): n for (m, name), n in found.items() if m}


@emulated
@dtypes
def test_small_layers_by_every_kernel(dtype: torch.dtype) -> None:
    before = instances()
    assert {kind for _, kind in before} == {*TYPES.values(), ""}
    with gpu_kernels(direct, direct):
        check_layer(*conv_and_input(*SMALL_DIRECT, dtype))
    slabs = dtype != torch.float64
    conv, x = conv_and_input(*SMALL, dtype if slabs else torch.float32)
    grad = gradient_of(conv, x)
    for rows, units in GATHER_VARIANTS[dtype.itemsize] if slabs else ():
        with gpu_kernels(gather=small_gather(rows, units), device=TWO):
            check_results(conv, x, grad, forward_and_grad_input(conv, x, grad))
    conv, grad = conv.requires_grad_(), grad[:3]
    x = x[:3].contiguous(memory_format=torch.channels_last)  # lanes that fill run along channels
    for units in GRAD_WEIGHT_UNITS[dtype.itemsize] if slabs else ():
        with gpu_kernels(grad_weight=small_grad_weight(units), device=TWO):
            check_grad_weight(conv, x, grad)
    after = instances()
    kinds = {TYPES[dtype], ""} if slabs else {TYPES[dtype]}
    assert not [name for name in after if name[1] in kinds and after[name] == before[name]]


# ---- refusals -----------------------------------------------------------------------------------


def replaced(choose, **fields):
    return lambda *problem: dataclasses.replace(choose(*problem), **fields)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_instances_that_are_not_compiled_are_named(dtype: torch.dtype) -> None:
    conv, x = conv_and_input(*SMALL, dtype)
    for rows, units in ((4, 3), (16, 1)):
        gather = replaced(choose_gather, rows=rows, units=units)
        message = f"gather: no kernel of {rows} rows and {units} units"
        with gpu_kernels(gather=gather), pytest.raises(ValueError, match=message):
            conv(x)
    grad_weight = replaced(choose_grad_weight, units=3)
    with gpu_kernels(grad_weight=grad_weight):
        y = conv(x)
        with pytest.raises(ValueError, match="grad_weight: no kernel of 3 units"):
            y.sum().backward()


def test_slabs_beyond_shared_memory_are_named() -> None:
    conv, x = conv_and_input((64, 4, 3, (60, 60), 5), {"padding": 1})
    gather = replaced(choose_gather, channel_block=64)
    message = r"gather: invalid argument \(\d{6,} bytes of shared memory\)"
    with gpu_kernels(gather=gather), pytest.raises(ValueError, match=message):
        conv(x)


def test_too_many_items_of_work_are_named() -> None:
    def choose(*problem):
        found = next(t for t in gather_choices(*problem) if (t.rows, t.row_warps) == (8, 1))
        layout = dataclasses.replace(found.layouts[0], tiles=2**30)
        return dataclasses.replace(found, layouts=(layout,))

    conv, x = conv_and_input((4, 9, 3, (6, 5), 3), {"padding": 1})
    message = r"gather: too many tiles \(3 images, 4 channels of 6x5 to 9 of 6x5"
    with gpu_kernels(gather=choose), pytest.raises(ValueError, match=message):
        conv(x)


def test_wrong_calls_of_a_plan_are_named() -> None:
    conv, x = conv_and_input(*SMALL)
    sizes = tuple(x.shape), (9, 12, 17, 16), cuda_fused_cases.shape_of(conv)
    strides = x.stride(), (12 * 17 * 16, 17 * 16, 16, 1)
    where = 0.3, 1, x.dtype, *strides, TWO, False
    with gpu_kernels():
        plan = plans.make("forward", *sizes, *where)
        sums = plans.make("grad_weight", *sizes, *where)
        with pytest.raises(ValueError, match="direction: expected 'forward', 'grad_input' or"):
            plans.make("backward", *sizes, *where)
        with pytest.raises(
            ValueError, match=r"dtype: expected 'float64', 'float32', .* got 'int8'"
        ):
            plans.make("forward", *sizes, 0.3, 1, torch.int8, *where[3:])
        huge = (2**40, *sizes[0][1:]), (2**40, *sizes[1][1:])
        with pytest.raises(ValueError, match="ConvPlan: expected sizes that 32 bits count, got"):
            plans.make("forward", *huge, *sizes[2:], *where)
        direct = kernels().PatternList.direct(0, 0, 0)
        nothing = (0,) * 5
        with pytest.raises(ValueError, match="list: expected one for a plan of kind 'slab', got"):
            plan.gather((0, 0), direct, *nothing)
        with pytest.raises(ValueError, match=r"ConvPlan\.gather needs one of 'forward'"):
            sums.gather((0, 0), direct, *nothing)
        with pytest.raises(ValueError, match="needs a plan of direction 'grad_weight'"):
            plan.grad_weight((0, 0), direct, *nothing[:4])
