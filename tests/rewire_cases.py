"""Random sparse layers, and one rewire of them by the native engine and by the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from dsr_kernels import _C
from dsr_kernels.rewiring import reference


@dataclass
class Case:
    """A sparse layer as tensors; `momentum` numbers the entries, so that every move shows."""

    rows: int
    row_length: int
    crow: torch.Tensor
    col: torch.Tensor
    values: torch.Tensor
    momentum: torch.Tensor

    @classmethod
    def make(cls, rows, row_length, positions, values, dtype=torch.float32) -> Case:
        positions = torch.as_tensor(sorted(positions), dtype=torch.int64)
        crow = torch.searchsorted(positions, torch.arange(rows + 1) * row_length).int()
        col = (positions - positions // row_length * row_length).int()
        momentum = torch.arange(1, len(positions) + 1, dtype=torch.float64)
        return cls(rows, row_length, crow, col, torch.tensor(values, dtype=dtype), momentum)

    def to(self, device) -> Case:
        tensors = (self.crow, self.col, self.values, self.momentum)
        return Case(self.rows, self.row_length, *(tensor.to(device) for tensor in tensors))

    @property
    def nnz(self) -> int:
        return self.col.numel()

    def positions(self) -> list[int]:
        row = np.repeat(np.arange(self.rows), np.diff(self.crow.numpy()))
        return (row * self.row_length + self.col.numpy()).tolist()

    def to_reference(self) -> reference.Layer:
        entries = zip(self.values.tolist(), self.momentum.tolist(), strict=True)
        return reference.Layer(
            self.rows * self.row_length, dict(zip(self.positions(), entries, strict=True))
        )


def describe(cases: list[Case]) -> list[tuple]:
    """The layers as every native plan takes them."""
    return [
        (
            f"layer{i}",
            case.rows,
            case.row_length,
            case.nnz,
            case.crow.data_ptr(),
            case.col.data_ptr(),
            case.values.data_ptr(),
            str(case.values.dtype).removeprefix("torch."),
            i,
        )
        for i, case in enumerate(cases)
    ]


def open_plan(cases: list[Case], threads: int = 1):
    return _C.RewirePlan(describe(cases), threads)


def decide(plan, *, threshold=None, count=None) -> None:
    if count is None:
        plan.prune_below(threshold)
    else:
        plan.prune_smallest(count)
    plan.grow_proportionally()


def apply(plan, cases: list[Case], *, seed=0, step=0) -> list[Case]:
    """The cases after. What the engine does not write stays recognizable: -7."""

    def fresh(like: torch.Tensor, size: int) -> torch.Tensor:
        return torch.full((size,), -7).to(like)

    after = [
        Case(
            case.rows,
            case.row_length,
            fresh(case.crow, case.rows + 1),
            fresh(case.col, nnz),
            fresh(case.values, nnz),
            fresh(case.momentum, nnz),
        )
        for case, nnz in zip(cases, plan.nnz_after, strict=True)
    ]
    outputs = []
    for old, new in zip(cases, after, strict=True):
        moved = [(old.values, new.values), (old.momentum, new.momentum)]
        arrays = [(a.data_ptr(), b.data_ptr(), a.element_size()) for a, b in moved]
        outputs.append((new.crow.data_ptr(), new.col.data_ptr(), arrays, 0))
    plan.apply(seed, step, outputs)
    return after


def native_rewire(cases, *, seed=0, step=0, threads=1, **how):
    """(cases after, plan)."""
    plan = open_plan(cases, threads)
    decide(plan, **how)
    return apply(plan, cases, seed=seed, step=step), plan


def random_case(rows, row_length, nnz, seed, dtype=torch.float32, grid=None) -> Case:
    """Normal weights, or (many ties) such of a grid with so many points to 1."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(rows * row_length, generator=generator)[:nnz].tolist()
    case = Case.make(rows, row_length, positions, [0.0] * nnz, dtype)
    case.values.normal_(generator=generator)
    if grid is not None:
        case.values.mul_(grid).round_().div_(grid)
    return case


def reference_rewire(cases, *, threshold=None, count=None, seed=0, step=0):
    def ranks(layer: int, free: int, grown: int) -> list[int]:
        return _C._feistel(free, seed, step, layer, list(range(grown))) if grown else []

    return reference.rewire(
        [case.to_reference() for case in cases], ranks, threshold=threshold, count=count
    )


@st.composite
def layers(draw, max_layers=5) -> list[Case]:
    """Layers from empty to full, of one or two dtypes, with weights on a coarse grid: many ties."""
    cases = []
    grid = draw(st.sampled_from([1, 3, 1000]))
    for _ in range(draw(st.integers(1, max_layers))):
        rows, row_length = draw(st.integers(1, 7)), draw(st.integers(1, 9))
        numel = rows * row_length
        nnz = draw(st.one_of(st.sampled_from([0, 1, numel]), st.integers(0, numel)))
        random = draw(st.randoms(use_true_random=False))
        dtype = draw(st.sampled_from([torch.float32, torch.float64]))
        values = [random.randint(-grid, grid) / grid for _ in range(nnz)]
        cases.append(Case.make(rows, row_length, random.sample(range(numel), nnz), values, dtype))
    return cases
