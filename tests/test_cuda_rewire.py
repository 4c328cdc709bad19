"""The GPU's rewire engine against the CPU's: equal bit for bit.

`-k small` picks what the emulator's thread sanitizer build runs in a reasonable time; the address
sanitizer build runs everything.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from cuda_device import DEVICE, configure, emulated, kernels
from cuda_rewire_cases import Workspaces, assert_equals_cpu, open_cuda
from hypothesis import given, settings
from hypothesis import strategies as st
from rewire_cases import Case, apply, decide, layers, open_plan, random_case

from dsr_kernels.rewiring import plan as plans

HOW_MUCH = st.one_of(
    st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 0.5, 1.0, 1.5, math.inf]), st.integers(0, 80)
)


def kind_of(how_much: float | int) -> dict[str, float | int]:
    return {"count" if isinstance(how_much, int) else "threshold": how_much}


# ---- bits ---------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(layers(), HOW_MUCH, st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_any_layers(cases, how_much, seed, step):
    configure(seed=seed % 1000)
    assert_equals_cpu(cases, seed, step, **kind_of(how_much))


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


def test_small_layers():
    configure(seed=1, preempt=0.1)
    cases = [random_case(40, 60, 1100, 0, grid=2), random_case(4, 5, 7, 1, torch.float64)]
    assert_equals_cpu(cases, seed=1, threshold=0.5)
    ties = Case.make(4, 2000, range(0, 6600, 3), [(-1.0) ** i for i in range(2200)])
    assert_equals_cpu([ties, cases[1]], seed=2, count=2150)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 700, 1023, 1024, 1999, 3000, 4095, 5000])
def test_ties_are_cut_anywhere(count, dtype):
    """Equal magnitudes in three layers: the one that is cut is cut inside a chunk or between."""
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
    assert_equals_cpu([Case.make(rows, row_length, positions, values)], threshold=0.8)


def test_nearly_full_and_full_layers_prune_only_what_they_can_regrow():
    cases = [random_case(20, 60, 1195, 0), random_case(4, 5, 19, 1), random_case(6, 7, 42, 2)]
    for some in (cases, cases[:1], cases[2:]):
        assert_equals_cpu(some, threshold=2.0)
        assert_equals_cpu(some, count=10**6)


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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_items_of_every_size_move(dtype):
    case = random_case(30, 50, 1100, 0)
    case.momentum = torch.arange(1, 1101).to(dtype)
    assert_equals_cpu([case, case], threshold=0.5)


@emulated
def test_the_number_of_launches_does_not_depend_on_the_number_of_layers():
    launches = []
    for n in (1, 20):
        cases = [random_case(6, 7, 20, seed) for seed in range(n)]
        before = kernels().emulator.stats()["launches"]
        plan = open_cuda(cases)
        decide(plan, count=8)
        apply(plan, cases)
        launches.append(kernels().emulator.stats()["launches"] - before)
    assert launches[0] == launches[1] < 30


# ---- errors -------------------------------------------------------------------------------------


def message(open_with, cases: list[Case], prepare=lambda cases: None, **how) -> str:
    with pytest.raises(ValueError) as raised:
        plan = open_with(cases)
        decide(plan, **how)
        prepare(cases)
        apply(plan, cases)
    return str(raised.value)


def assert_same_error(cases: list[Case], expected: str, prepare=lambda cases: None, **how) -> None:
    on_device = [copy.deepcopy(case).to(DEVICE) for case in cases]
    cpu = message(open_plan, cases, prepare, **how)
    assert message(open_cuda, on_device, prepare, **how) == cpu
    assert expected in cpu


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_weight_that_is_not_finite_is_named(bad, dtype):
    cases = [random_case(4, 4, 3, 0), random_case(40, 100, 2500, 1, dtype)]
    cases[1].values[[2300, 1500, 1501, 2499]] = bad
    row, col = divmod(cases[1].positions()[1500], 100)
    for how in ({"threshold": 0.5}, {"count": 100}):
        assert_same_error(cases, f"'layer1': the weight at row {row}, column {col} is", **how)
    cases[0].values[2] = bad
    assert_same_error(cases, "'layer0'", threshold=0.5)


def crow_falls(case: Case) -> None:
    case.crow[1200] = 3


def crow_starts_late(case: Case) -> None:
    case.crow[0] = 1


def crow_ends_early(case: Case) -> None:
    case.crow[-1] -= 1


def col_falls(case: Case) -> None:
    first = case.crow[700]
    case.col[first : first + 2] = case.col[first : first + 2].flip(0)


def col_repeats_between_chunks(case: Case) -> None:
    assert 1024 not in case.crow
    case.col[1024] = case.col[1023]


def col_is_negative(case: Case) -> None:
    case.col[case.crow[700]] = -1


def col_is_beyond_the_row(case: Case) -> None:
    case.col[case.crow[700] - 1] = case.row_length


@pytest.mark.parametrize("harm", [crow_falls, crow_starts_late, crow_ends_early])
def test_broken_crow_is_named(harm):
    cases = [random_case(4, 4, 3, 0), random_case(1500, 10, 4000, 1)]
    harm(cases[1])
    assert_same_error(cases, "'layer1': crow_indices do not rise from 0 to nnz", threshold=0.5)


@pytest.mark.parametrize(
    "harm", [col_falls, col_repeats_between_chunks, col_is_negative, col_is_beyond_the_row]
)
def test_broken_col_is_named(harm):
    cases = [random_case(4, 4, 3, 0), random_case(1500, 40, 30_000, 1)]
    harm(cases[1])
    assert_same_error(cases, "'layer1': col_indices are not ascending", threshold=0.5)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_weights_that_change_between_pruning_and_applying_are_noticed(value):
    def change(cases):
        cases[0].values.fill_(value)

    cases = [random_case(40, 100, 2500, 1)]
    assert_same_error(cases, "the weights changed during the rewire", change, threshold=0.5)


def test_bad_arguments_are_named():
    cases = [random_case(4, 4, 3, 0)]
    assert_same_error(cases, "threshold: expected a number >= 0", threshold=math.nan)
    assert_same_error(cases, "count: expected >= 0, got -1", count=-1)
    cases = [case.to(DEVICE) for case in cases]
    with pytest.raises(ValueError, match="apply: expected prune_below or prune_smallest before"):
        apply(open_cuda(cases), cases)
    plan = open_cuda(cases)
    decide(plan, count=1)
    with pytest.raises(ValueError, match="outputs: expected one for each of 1 layers, got 0"):
        plan.apply(0, 0, [])
    with pytest.raises(ValueError, match="item_size: expected 1, 2, 4 or 8 bytes, got 3"):
        plan.apply(0, 0, [(0, 0, [(0, 0, 3)])])
    too_many = [("x", 4, 4, 17, 0, 0, 0, "float32", 0)]
    with pytest.raises(ValueError, match="17 non-zeros do not fit 4 x 4 positions"):
        kernels().RewirePlan(too_many, *plans._queue(DEVICE), Workspaces())
