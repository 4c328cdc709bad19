"""Which grad-weights go by the GPU's matrix units, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import cuda_fused_cases
from helpers.cuda_conv_cases import EMULATED_GPU, TWO, conv_and_input, gpu_kernels
from helpers.cuda_window_grad_cases import SMALL, taken, windows
from helpers.formats import gradient_of

from dsr_kernels.backends.cuda import plans

__all__ = ["taken"]  # a fixture


def run(conv, x) -> None:
    torch.autograd.grad(conv(x), conv.weight_values, gradient_of(conv, x))


def test_warps_are_needed_for_everything(taken: list) -> None:
    conv, x = conv_and_input(*SMALL, torch.bfloat16)

    def choose(found):
        return dataclasses.replace(found[0], compute_warps=16, grad_warps=4)

    with windows(choose), pytest.raises(ValueError, match="16 that compute and 4 that bring the"):
        run(conv, x)


def test_shared_memory_is_what_was_planned(taken: list) -> None:
    conv, x = conv_and_input(
        (64, 64, 3, (16, 16), 33), {"padding": 1, "sparsity": 0.98}, torch.bfloat16
    )
    with windows(lambda found: max(found, key=lambda t: t.tile * t.channel_block)):
        made = plans.make(
            "grad_weight",
            tuple(x.shape),
            (33, 64, 16, 16),
            cuda_fused_cases.shape_of(conv),
            0.02,
            1,
            x.dtype,
            x.stride(),
            x.stride(),
            TWO,
            True,
        )
    (launched,) = made.describe()["launches"]
    assert 0.5 < launched["shared_bytes"] / TWO.shared_per_block <= 1
    assert not taken


@pytest.mark.parametrize(
    "outputs, groups, dtype, expected",
    [
        (16, 1, torch.bfloat16, True),
        (7, 1, torch.bfloat16, False),
        (32, 8, torch.bfloat16, False),
        (16, 1, torch.float32, True),
        (16, 1, torch.float64, False),
    ],
)
def test_who_has_windows(outputs, groups, dtype, expected: bool) -> None:
    conv, x = conv_and_input((8, outputs, 3, (8, 8), 9), {"padding": 1, "groups": groups}, dtype)
    with windows():
        found = plans.plan_of(
            "grad_weight",
            tuple(x.shape),
            (9, outputs, 8, 8),
            cuda_fused_cases.shape_of(conv),
            0.3,
            1,
            dtype,
            x.stride(),
            (outputs * 64, 64, 8, 1),
            TWO,
            True,
        )
    assert (found.kind == "window") == expected


def test_blocks_of_outputs_take_windows() -> None:
    """They share what windows read; single weights at 2 % do not."""
    conv, x = conv_and_input((64, 64, 3, (16, 16), 8), {"padding": 1}, torch.bfloat16)

    def taken_at(density: float, size: int) -> bool:
        found = plans.plan_of(
            "grad_weight",
            (128, 64, 16, 16),
            (128, 64, 16, 16),
            cuda_fused_cases.shape_of(conv),
            density,
            size,
            x.dtype,
            x.stride(),
            x.stride(),
            EMULATED_GPU,
            True,
        )
        return found.kind == "window"

    with gpu_kernels(window_grad_weight=None, device=EMULATED_GPU):
        assert taken_at(0.1, 16)
        assert not taken_at(0.01, 1)
