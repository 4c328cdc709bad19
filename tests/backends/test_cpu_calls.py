"""Prepared calls: checked once for each look of their tensors, and for no other."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable

import pytest
import torch
from helpers.nn_cases import layer
from helpers.prepared import keep_no_calls

from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.backends import cpu_calls
from dsr_kernels.backends.patterns import MAX_CALLS, patterns
from dsr_kernels.ops import library


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The checks that run."""
    seen = []

    def recorded(name: str):
        check = getattr(library, name)

        def call(*args: object) -> torch.Tensor:
            seen.append(name)
            return check(*args)

        return call

    for name in ("conv2d_result", "grad_input_result"):
        monkeypatch.setattr(library, name, recorded(name))
    return seen


def step(conv: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    leaf = x.detach().requires_grad_()
    y = conv(leaf)
    return [y, *torch.autograd.grad(y.square().sum(), [leaf, *conv.parameters()])]


def test_a_call_is_checked_once_for_each_look(checks: list[str]) -> None:
    conv, x = layer(5, 6, 3, padding=1), torch.randn(2, 5, 7, 8)
    first = step(conv, x)
    assert checks == ["conv2d_result", "grad_input_result"]
    assert all(map(torch.equal, first, step(conv, x)))
    assert len(checks) == 2
    last = x.to(memory_format=torch.channels_last)
    others = (x[:1], last, x.bfloat16(), x[:, :, :, ::2], x.expand(2, 5, 7, 8)[:, :, 1:])
    for other in others:
        checks.clear()
        y, again = (step(conv, other) for _ in range(2))
        assert checks.count("conv2d_result") == 1
        assert all(map(torch.equal, y, again))
        assert [t.stride() for t in y] == [t.stride() for t in again]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_prepared_call_computes_what_an_unprepared_one_does(threads: int) -> None:
    conv, x = layer(20, 33, 3, padding=1, stride=2), torch.randn(19, 20, 9, 16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        prepared = [step(conv, x) for _ in range(2)][1]
        with pytest.MonkeyPatch.context() as patch:
            keep_no_calls(patch)
            assert all(map(torch.equal, prepared, step(conv, x)))
    finally:
        torch.set_num_threads(before)


def test_wrong_arguments_are_refused_after_right_ones() -> None:
    conv, x = layer(5, 6, 3), torch.randn(2, 5, 7, 8)
    conv(x)
    crow, col, values = conv.crow_indices, conv.col_indices, conv.weight_values
    for wrong in (x[:, :4], x[:, :, :2], x.double(), x.int(), x[0, 0]):
        with pytest.raises((ValueError, TypeError)):
            conv(wrong)
    shape = (6, 5, 3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1
    call = torch.ops.dsr_kernels.sparse_conv2d
    call(x, values, None, crow, col, *shape)
    refused = [
        (x, values[1:], None, crow, col),
        (x, values, torch.zeros(5), crow, col),
        (x, values.double(), None, crow, col),
        (x, values, None, crow[1:], col),
        (x, values, None, crow, col.long()),
        (x, values, None, crow, col.view(torch.float32)),
        (x, values, None, crow.flip(0)[::1].t(), torch.stack((col, col), 1)[:, 0]),
    ]
    for args in refused:
        with pytest.raises((ValueError, TypeError)):
            call(*args, *shape)
    with pytest.raises(ValueError):
        call(x, values, None, crow, col, *shape[:1], (0, 1), *shape[2:])


def test_a_pattern_that_changes_is_planned_anew() -> None:
    conv, x = layer(5, 6, 3, seed=1), torch.randn(2, 5, 7, 8)
    other = layer(5, 6, 3, seed=2)
    for _ in range(2):
        conv(x)
    conv.load_state_dict(other.state_dict())
    torch.testing.assert_close(conv(x), other.dense_module()(x), rtol=1e-4, atol=1e-5)


def test_large_workspaces_live_as_long_as_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not kept is freed with its tensor."""
    living = []
    linear = SparseLinear(70_000, 40_000, nnz=1000)
    made = cpu_calls.scratch

    def scratch(size: int) -> torch.Tensor:
        workspace = made(size)
        living.append(weakref.ref(workspace))
        return workspace

    def watched(native: Callable[..., None]) -> Callable[..., None]:
        def run(*args: object) -> None:
            assert living[-1]() is not None
            native(*args)

        return run

    monkeypatch.setattr(cpu_calls, "scratch", scratch)
    monkeypatch.setattr(cpu_calls, "taking_tensors", watched)
    x = torch.randn(3, 70_000, requires_grad=True)
    linear(x).sum().backward()
    assert len(living) == 2


def test_calls_are_few_and_die_with_their_plans() -> None:
    patterns.clear()
    linear = SparseLinear(8, 8)
    for n in range(1, MAX_CALLS + 10):
        linear(torch.randn(n, 8))
    pattern = patterns.find(linear.crow_indices, linear.col_indices)
    assert 0 < len(pattern.calls) <= MAX_CALLS
    patterns.clear()
    assert not pattern.calls


def test_second_derivatives_take_no_prepared_backward() -> None:
    conv, x = layer(3, 4, 3, dtype=torch.float64), torch.randn(2, 3, 5, 5, dtype=torch.float64)
    step(conv, x)
    leaf = x.requires_grad_()
    (grad,) = torch.autograd.grad(conv(leaf).pow(3).sum(), leaf, create_graph=True)
    assert grad.requires_grad


class Doubled(SparseConv2d):
    @property
    def weight_values(self) -> torch.Tensor:
        return 2 * self._parameters["weight_values"]


def test_tensors_that_are_overridden_are_used() -> None:
    conv, x = layer(4, 6, 3, bias=False), torch.randn(2, 4, 8, 8)
    y = conv(x)
    own = copy.deepcopy(conv)
    own.__dict__["weight_values"] = 2 * conv.weight_values.detach()
    torch.testing.assert_close(own(x), 2 * y)
    moved = copy.deepcopy(conv)
    crow_indices = moved.crow_indices
    del moved.crow_indices
    moved.crow_indices = crow_indices
    assert torch.equal(moved(x), y)
    conv.__class__ = Doubled
    torch.testing.assert_close(conv(x), 2 * y)


def test_a_default_device_moves_no_result() -> None:
    conv, x = layer(4, 6, 3), torch.randn(2, 4, 8, 8)
    expected = step(conv, x)
    with torch.device("meta"):
        assert all(map(torch.equal, step(conv, x), expected))
