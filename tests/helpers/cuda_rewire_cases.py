"""Rewires by the GPU's engine: the emulator runs them, or with DSR_TEST_DEVICE=cuda a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from helpers.cuda_device import DEVICE, EMULATED, kernels, queue
from helpers.rewire_cases import Case, apply, decide, describe, open_plan

from dsr_kernels.backends import native
from dsr_kernels.rewiring import plan as plans

COUNTED = ("prunable", "below", "below_each", "total_capacity")
DECISIONS = (*COUNTED, "threshold", "thresholds", "pruned", "grown", "nnz_after")
GUARD = 64  # bytes around a workspace that nobody may write


class Workspaces:
    """Device memory that starts as rubbish and shows what is written around it."""

    def __init__(self) -> None:
        self.blocks: list[torch.Tensor] = []

    def __call__(self, size: int) -> int:
        block = torch.full((size + 2 * GUARD,), 0xA5, dtype=torch.uint8, device=DEVICE)
        self.blocks.append(block)
        return block.data_ptr() + GUARD

    def check(self) -> None:
        for block in self.blocks:
            assert (block[:GUARD] == 0xA5).all() and (block[-GUARD:] == 0xA5).all()


def open_cuda(cases: list[Case], workspaces: Workspaces | None = None):
    """A plan of cases that are on DEVICE."""
    allocate = Workspaces() if workspaces is None else workspaces
    return kernels().RewirePlan(describe(cases), *queue(), allocate)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.cpu().numpy().tobytes() == b.cpu().numpy().tobytes()


def assert_equals_cpu(
    cases: list[Case], seed: int = 0, step: int = 0, *, ranks=None, skip=False, **how
) -> None:
    where = {"seed": seed, "step": step, "ranks": ranks, "skip": skip}
    workspaces = Workspaces()
    on_device = [case.to(DEVICE) for case in cases]
    cpu, cuda = open_plan(cases), open_cuda(on_device, workspaces)
    for plan in (cpu, cuda):
        decide(plan, **how)
    for name in DECISIONS:
        assert getattr(cuda, name) == getattr(cpu, name), name
    expected = apply(cpu, cases, **where)
    for new, wanted in zip(apply(cuda, on_device, **where), expected, strict=True):
        for name in ("crow", "col", "values", "momentum"):
            assert same_bits(getattr(new, name), getattr(wanted, name)), name
    workspaces.check()


@contextlib.contextmanager
def gpu_rewires() -> Iterator[list[int]]:
    """Inside, models on DEVICE are rewired by the GPU's engine, also where DEVICE is the CPU.

    Yields the numbers of layers of the plans that the emulated kernels have opened.
    """
    opened = []

    def open_on_gpu(layers, keep):
        opened.append(len(layers))
        return plans._open_on_gpu(layers, keep, DEVICE)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_cuda", kernels())
        if EMULATED:
            patch.setattr(plans, "_open_on_cpu", open_on_gpu)
            patch.setattr(plans, "_queue", lambda _: queue())
        yield opened
