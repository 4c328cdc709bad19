"""Layers by the GPU's matrix units, also where the planner would not take them.

With DSR_TEST_DEVICE=cpu the emulator runs them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from itertools import cycle

import pytest
import torch
from helpers import cuda_fused_cases
from helpers.cuda_conv_cases import gpu_kernels
from helpers.cuda_planner import Chosen, window_grad_weight_tilings
from helpers.cuda_window_cases import SHAPES, gradient, model, problem, readers
from helpers.formats import FORMATS
from helpers.matrix_units import as_operand, round_weights, truncation, unit_of
from helpers.nn_cases import check_results, gradients, results, same_bits
from torch import Tensor

from dsr_kernels import SparseModule
from dsr_kernels.backends import native
from dsr_kernels.backends.cuda import call, plans, tensor_cores

from .cases import LARGE, on_device
from .device import DEVICE, ON_CUDA, cuda_only

pytestmark = pytest.mark.gpu
if ON_CUDA and native._cuda is None:
    pytest.skip("this build has no CUDA kernels", allow_module_level=True)
TYPES = (torch.bfloat16, torch.float16, torch.float32)  # float32 as TF32
types = pytest.mark.parametrize("dtype", TYPES, ids=str)
both = pytest.mark.parametrize("dtype", TYPES[::2], ids=str)
SIZES = (1, 4, 16)  # of blocks
EVERY = ["gather", "gather", "grad_weight"]  # forward, grad-input, grad-weight


def cheapest(*sizes):
    found = min(window_grad_weight_tilings(*sizes), key=lambda t: t.clocks, default=None)
    return found and dataclasses.replace(found, clocks=-1.0)


@contextlib.contextmanager
def noted() -> Iterator[list[str]]:
    """The passes that went by windows inside."""
    found, gather, grad_weight = [], call.gather, call.grad_weight

    def noted_gather(*arguments, **more):
        found.extend(["gather"] * (arguments[3].kind == "window"))
        return gather(*arguments, **more)

    def noted_grad_weight(*arguments, **more):
        found.extend(["grad_weight"] * (arguments[4].kind == "window"))
        return grad_weight(*arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call, "gather", noted_gather)
        patch.setattr(call, "grad_weight", noted_grad_weight)
        yield found


@contextlib.contextmanager
def windows() -> Iterator[list[str]]:
    """Inside, whatever can goes by windows; the passes that did."""
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        if ON_CUDA:
            patch.setenv(tensor_cores.SWITCH, "1")
            patch.setattr(plans, "make", Chosen(None, None, model, cheapest).make)
        else:
            stack.enter_context(gpu_kernels(window_gather=model, window_grad_weight=cheapest))
        found = stack.enter_context(noted())
        stack.callback(plans.plan_of.cache_clear)
        plans.plan_of.cache_clear()
        yield found


def layer(name: str, dtype: torch.dtype, size: int) -> tuple:
    conv, x = problem(name, dtype, size)
    return conv.to(DEVICE), x.to(DEVICE)


def check_layer(
    conv: SparseModule, x: Tensor, grad: Tensor | None = None, device: str | torch.device = "cpu"
) -> None:
    """As nn_cases.check_layer, on weights rounded before, with what matrix units cut off."""
    round_weights(conv, x.dtype)
    if x.dtype == torch.float32:
        conv.weight_values.data = as_operand(conv.weight_values.detach())
    x = x if x.requires_grad else x.detach().requires_grad_()
    y = conv(x)
    grad = as_operand(torch.randn_like(y)) if grad is None else grad
    ours = [y.detach(), *gradients(conv, x, y, grad)]
    check_results(conv, x, grad, ours, device, truncation(conv, y))


@pytest.mark.sanitizer
@pytest.mark.parametrize("name, size", [("7 wide, stride 2", 1), ("groups", 8), ("dead taps", 4)])
@types
def test_tiny(name: str, size: int, dtype: torch.dtype) -> None:
    conv, x = layer(name, dtype, size)
    with windows() as taken:
        check_layer(conv, x[:9])
    assert taken == EVERY


@pytest.mark.parametrize("name, dtype", list(zip(SHAPES, cycle(TYPES), strict=False)), ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_every_shape(name: str, dtype: torch.dtype, size: int) -> None:
    conv, x = layer(name, dtype, size)
    with windows() as taken:
        check_layer(conv, x)
        last = {"memory_format": torch.channels_last}
        check_layer(conv, x.to(**last), gradient(conv, x).to(**last))
    assert taken[:3] == EVERY


@pytest.mark.parametrize("name", FORMATS)
@both
def test_memory_formats(name: str, dtype: torch.dtype) -> None:
    of_x, of_grad = FORMATS[name]
    conv, x = layer("stride (2, 3)", dtype, 4)
    with windows() as taken:
        check_layer(conv, of_x(x), of_grad(gradient(conv, x)))
    assert taken[-3:] == EVERY


@pytest.mark.parametrize("name, size", list(zip(LARGE, cycle(SIZES), strict=False)))
@both
@cuda_only
def test_large_convolutions(name: str, size: int, dtype: torch.dtype) -> None:
    conv, x = on_device(name, dtype, LARGE, size)
    with windows() as taken:
        check_layer(conv, as_operand(x), device=DEVICE)
    assert "grad_weight" in taken


@pytest.mark.parametrize("size", SIZES)
@both
@cuda_only
def test_what_the_planner_takes(size: int, dtype: torch.dtype, note) -> None:
    for name in LARGE:
        conv, x = on_device(name, dtype, LARGE, size)
        with noted() as taken:
            check_layer(conv, as_operand(x), device=DEVICE)
        note(f"{name} in blocks of {size}, {dtype}: by windows {', '.join(taken) or 'nothing'}")


@pytest.mark.parametrize("size", SIZES)
@types
def test_what_is_not_finite_stays_in_windows_that_read_it(size: int, dtype: torch.dtype) -> None:
    conv, x = problem("nearly empty", dtype, size, sparsity=0.9)
    conv, x = conv.to(DEVICE), x.to(DEVICE)
    with windows() as taken, torch.no_grad():
        expected = conv(x)
        x[1, 3, 2, 2], x[4, 20, 0, 4] = torch.inf, torch.nan
        y = conv(x)
    _, spoilt = readers(conv, x)
    assert spoilt.any() and not y[spoilt].isfinite().any()
    assert same_bits([y[~spoilt]], [expected[~spoilt]])
    assert taken == EVERY[:2]


@pytest.mark.parametrize("size", SIZES)
@both
def test_two_runs_have_the_same_bits(size: int, dtype: torch.dtype) -> None:
    conv, x = layer("many channels, stride (2, 3)", dtype, size)
    with windows():
        grad = gradient(conv, x)
        assert same_bits(results(conv, x, grad), results(conv, x, grad))


@pytest.mark.parametrize("parts", cuda_fused_cases.PARTS)
@pytest.mark.parametrize("name, size", [("groups", 4), ("14 wide", 16), ("56 wide", 1)])
def test_fused(name: str, size: int, parts: str) -> None:
    conv, x = layer(name, TYPES[SIZES.index(size)], size)
    p = cuda_fused_cases.problem(conv, x, **cuda_fused_cases.PARTS[parts])
    with windows() as taken:
        found = cuda_fused_cases.by_operations(p)
    cuda_fused_cases.check(p, found, unit=unit_of(p.x.dtype))
    assert sorted(taken) == ["gather", *EVERY]  # forward twice: as it is, and folded


@cuda_only
def test_a_graph_has_the_bits_of_eager_mode() -> None:
    conv, x = layer("16 wide", torch.bfloat16, 4)
    with windows(), torch.no_grad():
        expected = conv(x)  # makes the lists
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = conv(x)
        y.fill_(torch.nan)
        graph.replay()
        torch.cuda.synchronize(DEVICE)
    assert torch.equal(y, expected)
