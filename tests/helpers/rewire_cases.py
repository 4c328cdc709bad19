"""Random sparse layers, and one rewire of them by the native engine and by the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from dsr_kernels.backends.native import _C
from dsr_kernels.rewiring import reference


@dataclass
class Case:
    """A sparse layer as tensors; `momentum` numbers the entries, so that every move shows. It may
    have more dimensions behind the entries'."""

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


def decide(plan, *, threshold=None, count=None, counts=None, grown=None) -> None:
    """grown: how many grow in each layer; capacity then does not limit what is pruned. None: as
    many as are pruned, in proportion."""
    if counts is not None:
        plan.prune_smallest_each(counts)
    elif count is not None:
        plan.prune_smallest(count, regrown=grown is None)
    else:
        plan.prune_below(threshold)
    if grown is None:
        plan.grow_proportionally()
    else:
        plan.grow(grown)


def apply(plan, cases: list[Case], *, seed=0, step=0, ranks=None, skip=False) -> list[Case]:
    """The cases after. What the engine does not write stays recognizable: -7.

    ranks: of each layer the ranks that grow, or None for sampled ones. skip: nothing is to be
    written for layers that do not change.
    """

    def fresh(like: torch.Tensor, size: int) -> torch.Tensor:
        return torch.full((size, *like.shape[1:]), -7).to(like)

    def address_of(given: list[int] | None, case: Case) -> int:
        if given is None:
            return 0
        kept.append(torch.tensor(given, dtype=torch.int64).to(case.col.device))
        return kept[-1].data_ptr()

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
    outputs, kept = [], []
    for i, (old, new) in enumerate(zip(cases, after, strict=True)):
        if skip and plan.pruned[i] == plan.grown[i] == 0:
            after[i] = old
            outputs.append((0, 0, [], 0))
            continue
        moved = [(old.values, new.values), (old.momentum, new.momentum)]
        arrays = [
            (a.data_ptr(), b.data_ptr(), a.element_size() * a[:1].numel())
            for a, b in moved
            if old.nnz
        ]
        given = address_of(ranks[i] if ranks else None, old)
        outputs.append((new.crow.data_ptr(), new.col.data_ptr(), arrays, given))
    plan.apply(seed, step, outputs)
    return after


def native_rewire(cases, *, seed=0, step=0, threads=1, ranks=None, skip=False, **how):
    """(cases after, plan)."""
    plan = open_plan(cases, threads)
    decide(plan, **how)
    return apply(plan, cases, seed=seed, step=step, ranks=ranks, skip=skip), plan


def random_case(rows, row_length, nnz, seed, dtype=torch.float32, grid=None) -> Case:
    """Normal weights; grid: rounded to multiples of 1 / grid, which makes many ties."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(rows * row_length, generator=generator)[:nnz].tolist()
    case = Case.make(rows, row_length, positions, [0.0] * nnz, dtype)
    case.values.normal_(generator=generator)
    if grid is not None:
        case.values.mul_(grid).round_().div_(grid)
    return case


def reference_rewire(cases, *, seed=0, step=0, ranks=None, **how):
    def choose(layer: int, free: int, grown: int) -> list[int]:
        if grown and ranks and ranks[layer] is not None:
            return ranks[layer]
        return _C._feistel(free, seed, step, layer, list(range(grown))) if grown else []

    return reference.rewire([case.to_reference() for case in cases], choose, **how)


def assert_equals_reference(cases, after, **how) -> None:
    expected = reference_rewire(cases, **how)
    for new, wanted in zip(after, expected, strict=True):
        assert new.positions() == list(wanted.entries)
        assert new.values.tolist() == [entry[0] for entry in wanted.entries.values()]
        assert new.momentum.tolist() == [entry[1] for entry in wanted.entries.values()]


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


@st.composite
def layers_and_decisions(draw) -> tuple[list[Case], dict]:
    """Layers, and how to rewire them where all is decided by the caller."""
    cases = draw(layers())
    random = draw(st.randoms(use_true_random=False))

    def up_to(most: int) -> int:
        return draw(st.one_of(st.sampled_from([0, most]), st.integers(0, most)))

    counts = [up_to(case.nnz) for case in cases]
    free = [case.rows * case.row_length - case.nnz for case in cases]
    grown = [up_to(f) if case.nnz else 0 for f, case in zip(free, cases, strict=True)]
    ranks = [
        draw(st.sampled_from([None, sorted(random.sample(range(f), g))]))
        for f, g in zip(free, grown, strict=True)
    ]
    pruned = draw(st.sampled_from([{"counts": counts}, {"count": sum(counts)}]))
    return cases, {**pruned, "grown": grown, "ranks": ranks, "skip": draw(st.booleans())}


def two_layers() -> list[Case]:
    """For BAD: 3 non-zeros and 13 free positions in one, 50 and 950 in the other."""
    return [random_case(4, 4, 3, 0), random_case(10, 100, 50, 1)]


# What the engine refuses of two_layers(), and what it says then.
BAD = [
    ({"count": -1, "counts": None}, "count: expected >= 0, got -1"),
    ({"counts": [1]}, "counts: expected one for each of 2 layers, got 1"),
    ({"counts": [1, -2]}, "layer 'layer1': count: expected >= 0, got -2"),
    ({"grown": [1]}, "grown: expected one for each of 2 layers, got 1"),
    ({"grown": [14, 0]}, "'layer0': expected to grow between 0 and its 13 free positions, got 14"),
    ({"grown": [0, -1]}, "'layer1': expected to grow between 0 and its 950 free positions, got -1"),
    ({"ranks": [None, [0, 3, 3]]}, "'layer1': the ranks of what grows do not ascend"),
    ({"ranks": [[4, 2, 5], None]}, "'layer0': the ranks of what grows do not ascend"),
    ({"ranks": [[-1, 2, 5], None]}, "'layer0': the ranks of what grows do not ascend"),
    ({"ranks": [[2, 5, 13], [0, 0, 0]]}, "'layer0': the ranks of what grows do not ascend"),
]
FINE = {"counts": [1, 1], "grown": [3, 3], "ranks": None}


def refusal(open_with, cases: list[Case], *, prepare=lambda cases: None, ranks=None, **how) -> str:
    """What a rewire that must not succeed says. prepare(cases) is called before it is applied."""
    with pytest.raises(ValueError) as raised:
        plan = open_with(cases)
        decide(plan, **how)
        prepare(cases)
        apply(plan, cases, ranks=ranks)
    return str(raised.value)
