"""The GPU's rewire engine against the CPU's: equal bit for bit.

`-k small` picks what the emulator's thread sanitizer build runs in a reasonable time; the address
sanitizer build runs everything.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers.cuda_device import configure, emulated, kernels
from helpers.cuda_rewire_cases import assert_equals_cpu, open_cuda
from helpers.rewire_cases import Case, apply, decide, layers, layers_and_decisions, random_case
from hypothesis import given, settings
from hypothesis import strategies as st

HOW_MUCH = st.one_of(
    st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 0.5, 1.0, 1.5, math.inf]), st.integers(0, 80)
)


def kind_of(how_much: float | int) -> dict[str, float | int]:
    return {"count" if isinstance(how_much, int) else "threshold": how_much}


@settings(max_examples=80, deadline=None)
@given(layers(), HOW_MUCH, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_any_layers(cases, how_much, seed, step):
    configure(seed=seed % 1000)
    assert_equals_cpu(cases, seed, step, **kind_of(how_much))


@settings(max_examples=120, deadline=None)
@given(layers_and_decisions(), st.integers(0, 2**64 - 1))
def test_any_decisions_of_the_caller(drawn, seed):
    configure(seed=seed % 1000)
    cases, how = drawn
    assert_equals_cpu(cases, seed, **how)


def several_chunks() -> list[Case]:
    """Boundaries of chunks in entries, rows and what grows; empty and single-entry layers."""
    return [
        random_case(64, 300, 5000, 0, grid=3),
        random_case(10, 103, 1030, 1, torch.float64),
        random_case(5, 5, 0, 2),
        random_case(2500, 7, 1024, 3),
        random_case(50, 50, 1, 4),
        random_case(1, 40_000, 2048, 5, torch.float64, grid=3),
        random_case(300, 40, 1025, 6, grid=1),
    ]


def test_the_cases_are_of_several_chunks():
    assert kernels().rewire_chunk == 1024  # else other sizes must be chosen above and below


@pytest.mark.parametrize("order", ["random", "ascending", "descending"])
@pytest.mark.parametrize("how_much", [0.0, 0.3, 1 / 3, math.inf, 0, 1, 4000, 10**6])
def test_layers_of_several_chunks(order, how_much):
    configure(seed=3, order=order, preempt=0.1)
    assert_equals_cpu(several_chunks(), seed=5, step=2, **kind_of(how_much))


@pytest.mark.parametrize("part", [0, 0.3, 0.999, 2])
def test_each_of_several_layers_of_several_chunks(part):
    configure(seed=4, preempt=0.1)
    cases = several_chunks()
    counts = [int(part * case.nnz) for case in cases]
    counts[3] = 0
    grown = [min(1500, case.rows * case.row_length - case.nnz) if case.nnz else 0 for case in cases]
    ranks = [list(range(n)) if i % 2 else None for i, n in enumerate(grown)]
    grown[6] = 0
    assert_equals_cpu(cases, 5, counts=counts, grown=grown, ranks=ranks)


def test_small_layers():
    configure(seed=1, preempt=0.1)
    cases = [random_case(40, 60, 1100, 0, grid=2), random_case(4, 5, 7, 1, torch.float64)]
    assert_equals_cpu(cases, seed=1, threshold=0.5)
    ties = Case.make(4, 2000, range(0, 6600, 3), [(-1.0) ** i for i in range(2200)])
    assert_equals_cpu([ties, cases[1]], seed=2, count=2150)


def test_small_layers_one_by_one():
    configure(seed=1, preempt=0.1)
    cases = [random_case(40, 60, 1100, 0, grid=2), random_case(4, 5, 7, 1, torch.float64)]
    cases += [random_case(4, 5, 0, 2), random_case(5, 6, 12, 3)]
    grown, ranks = [1030, 3, 0, 0], [None, [0, 4, 12], None, None]
    assert_equals_cpu(cases, counts=[600, 9, 5, 0], grown=grown, ranks=ranks, skip=True)


def test_given_ranks_of_more_digits_than_sampled_ones():
    cases = [random_case(4, 5, 7, 0), random_case(40, 2000, 300, 1)]
    ranks = list(range(3, 79_000, 97))
    assert_equals_cpu(cases, counts=[2, 100], grown=[4, len(ranks)], ranks=[None, ranks])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 700, 1023, 1024, 1999, 3000, 4095, 5000])
def test_ties_are_split_anywhere(count, dtype):
    """Equal magnitudes in three layers: one is split, inside a chunk or between two."""
    cases = [
        Case.make(2, 5000, range(0, 2 * n, 2), [0.3 * (-1.0) ** i for i in range(n)], dtype)
        for n in (1000, 2000, 2049)
    ]
    assert_equals_cpu(cases, count=count)


@pytest.mark.parametrize(
    ("rows", "row_length"), [(60_000, 50_000), (3, 2**31 - 1), (5000, 2**31 - 1)]
)
def test_huge_layers(rows, row_length):
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(rows * row_length, (1500,), generator=generator).unique().tolist()
    values = [(-1) ** i * (i * 7919 % 1500 + 1) / 1500 for i in range(len(positions))]
    cases = [Case.make(rows, row_length, positions, values)]
    assert_equals_cpu(cases, threshold=0.8)
    last = rows * row_length - len(positions) - 1
    ranks = sorted({0, 1, *torch.randint(last, (1100,), generator=generator).tolist(), last})
    assert_equals_cpu(cases, counts=[700], grown=[len(ranks)], ranks=[ranks])


def test_nearly_full_and_full_layers_prune_only_what_they_can_regrow():
    cases = [random_case(20, 60, 1195, 0), random_case(4, 5, 19, 1), random_case(6, 7, 42, 2)]
    for some in (cases, cases[:1], cases[2:]):
        assert_equals_cpu(some, threshold=2.0)
        assert_equals_cpu(some, count=10**6)
        assert_equals_cpu(some, count=700, grown=[0] * len(some))  # more than could grow back


def test_subnormal_huge_and_signed_zero_weights():
    values = [0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, 1e-38, 2e-38]
    double = [0.0, -0.0, 5e-324, 1e308, -1e308, 1e-45, 1.0, 1.0 + 2**-52]
    cases = [
        Case.make(4, 9, range(3, 11), values),
        Case.make(4, 9, range(20, 28), double, torch.float64),
    ]
    how = [{"threshold": t} for t in (-0.0, 5e-324, 1e-45, 1.0)] + [{"count": n} for n in range(15)]
    for some in (cases, cases[:1]):
        for kind in how:
            assert_equals_cpu(some, **kind)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 12, 36, 72])
@pytest.mark.parametrize("offset", [0, 4])
def test_items_of_every_size_move(size, offset):
    case = random_case(30, 50, 1100, 0)
    items = torch.randint(256, (1100 * size + offset,), dtype=torch.uint8)
    case.momentum = items[offset:].view(1100, size)  # of 8 bytes, but not at multiples of 8
    assert_equals_cpu([case, case], threshold=0.5)


@emulated
def test_the_number_of_launches_does_not_depend_on_the_number_of_layers():
    def launches(n: int, **how) -> int:
        cases = [random_case(6, 7, 20, seed) for seed in range(n)]
        before = kernels().emulator.stats()["launches"]
        plan = open_cuda(cases)
        decide(plan, **how)
        apply(plan, cases)
        return kernels().emulator.stats()["launches"] - before

    one = launches(1, count=8)
    assert one < 30
    assert launches(20, count=8) == one
    assert launches(20, counts=[8] * 20, grown=[4] * 20) == one
