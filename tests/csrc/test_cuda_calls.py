"""Prepared calls of the GPU's kernels compute what unprepared ones do, bit for bit."""

from __future__ import annotations

import pytest
import torch
from helpers.cuda_conv_cases import EMULATED_GPU, conv_and_input, direct, gpu_kernels
from helpers.cuda_device import DEVICE
from helpers.cuda_planner import choose_window_grad_weight
from helpers.cuda_window_cases import model
from helpers.nn_cases import layer
from torch import Tensor, nn

from dsr_kernels import SparseLinear
from dsr_kernels.backends import patterns as room
from dsr_kernels.backends import tensors
from dsr_kernels.backends.cuda import calls, tensor_cores
from dsr_kernels.backends.patterns import patterns

LAYERS = {
    "3x3": ((6, 9, 3, (7, 9), 5), {"padding": 1}),
    "strided": ((6, 9, 3, (7, 9), 5), {"padding": 1, "stride": 2}),
    "strided points": ((6, 9, 1, (7, 9), 5), {"stride": 2}),
    "points": ((8, 8, 1, (4, 4), 3), {}),
    "groups": ((6, 8, 3, (6, 6), 4), {"padding": 1, "groups": 2}),
}


def steps(module: nn.Module, x: Tensor, count: int) -> list[list[Tensor]]:
    """Results and gradients of so many steps, and the gradient of the weight alone."""
    found = []
    for _ in range(count):
        leaf = x.detach().requires_grad_()
        y = module(leaf)
        grad = torch.ones_like(y) + y.detach()
        parameters = list(module.parameters())
        both = torch.autograd.grad(y, [leaf, *parameters], grad)
        alone = torch.autograd.grad(module(x), parameters, grad)
        found.append([y.detach(), *both, *alone])
    return found


def kinds_of(module: nn.Module) -> set[type]:
    found = patterns.known(module.crow_indices, module.col_indices)
    return {type(kept.call) for each in found.calls.values() for kept in each}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", list(LAYERS))
def test_they_compute_the_same(name: str, dtype: torch.dtype) -> None:
    conv, x = conv_and_input(*LAYERS[name], dtype)
    with gpu_kernels(device=EMULATED_GPU):
        (expected,) = steps(conv, x, 1)
        assert not kinds_of(conv)
    with gpu_kernels(device=EMULATED_GPU, prepared=True):
        found = steps(conv, x, 3)
        assert kinds_of(conv) == {calls.Forward, calls.Backward, calls.GradWeight}
    for each in found:
        assert all(map(torch.equal, each, expected))
        assert [t.stride() for t in each] == [t.stride() for t in expected]


@pytest.mark.parametrize("size", [(6, 40), (2, 3, 40)], ids=str)
def test_linear_layers(size: tuple[int, ...]) -> None:
    linear = SparseLinear(40, 24, sparsity=0.8).to(DEVICE)
    x = torch.randn(size).to(DEVICE)
    with gpu_kernels(device=EMULATED_GPU):
        (expected,) = steps(linear, x, 1)
    with gpu_kernels(device=EMULATED_GPU, prepared=True):
        for each in steps(linear, x, 3):
            assert all(map(torch.equal, each, expected))
        assert kinds_of(linear) == {calls.Forward, calls.Backward, calls.GradWeight}


def test_another_look_or_pattern_is_prepared_anew() -> None:
    conv, x = conv_and_input(*LAYERS["3x3"])
    other = layer(6, 9, 3, padding=1, seed=9).to(DEVICE)
    other.load_state_dict({"bias": conv.bias}, strict=False)
    with gpu_kernels(device=EMULATED_GPU, prepared=True):
        steps(conv, x, 2)
        last = x.contiguous(memory_format=torch.channels_last)
        (moved,) = steps(conv, last, 1)
        assert moved[0].is_contiguous(memory_format=torch.channels_last)
        (fewer,) = steps(conv, x[:2], 1)
        pattern = other.crow_indices, other.col_indices
        conv.replace_topology(*pattern, other.weight_values.detach())
        (rewired,) = steps(conv, x, 1)
    with gpu_kernels(device=EMULATED_GPU):
        assert all(map(torch.equal, rewired[:3], steps(other, x, 1)[0][:3]))
        conv, x = conv_and_input(*LAYERS["3x3"])
        assert all(map(torch.equal, moved, steps(conv, last, 1)[0]))
        assert all(map(torch.equal, fewer, steps(conv, x[:2], 1)[0]))


def test_freed_memory_is_refused_by_name() -> None:
    conv, x = conv_and_input(*LAYERS["3x3"])
    with gpu_kernels(device=EMULATED_GPU, prepared=True):
        steps(conv, x, 2)
        freed = x.clone()
        freed.untyped_storage().resize_(0)
        with pytest.raises(TypeError, match="input"):
            conv(freed)


def test_what_the_slab_kernels_do_not_take_is_not_prepared() -> None:
    conv, x = conv_and_input(*LAYERS["3x3"], torch.float64)
    with gpu_kernels(device=EMULATED_GPU, prepared=True):
        first, second = steps(conv, x, 2)
        assert not kinds_of(conv)
    assert all(map(torch.equal, first, second))


def window_calls(dtype: torch.dtype) -> tuple[set[type], bool]:
    """(what is prepared of a layer whose passes go by windows, whether it computes the same)."""
    conv, x = conv_and_input((8, 16, 3, (7, 9), 5), {"padding": 1, "block_size": 4}, dtype)
    by_windows = {"gather": direct, "grad_weight": direct, "window_gather": model}
    by_windows["window_grad_weight"] = choose_window_grad_weight
    with gpu_kernels(device=EMULATED_GPU, **by_windows):
        (expected,) = steps(conv, x, 1)
    with gpu_kernels(device=EMULATED_GPU, prepared=True, **by_windows):
        found = steps(conv, x, 3)
        kinds = kinds_of(conv)
    return kinds, all(all(map(torch.equal, each, expected)) for each in found)


def test_windows_are_prepared_unless_torchs_settings_decide_on_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of float32 the next call may have to go without."""
    every = {calls.Forward, calls.Backward, calls.GradWeight}
    assert window_calls(torch.bfloat16) == (every, True)
    for allowed in (True, False):
        monkeypatch.setattr(tensor_cores, "tf32_allowed", lambda _, allowed=allowed: allowed)
        assert window_calls(torch.float32) == (set(), True)


def test_an_older_torch_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input(*LAYERS["3x3"])
    with gpu_kernels(device=EMULATED_GPU, prepared=True):
        expected = steps(conv, x, 2)[1]
        patterns.clear()
        monkeypatch.setattr(tensors, "IS_NATIVE", False)
        monkeypatch.setattr(room, "look_of", tensors.ComparedLook)
        assert all(map(torch.equal, expected, steps(conv, x, 2)[1]))
