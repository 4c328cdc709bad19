"""What the GPU's rewire engine refuses: the same as the CPU's, in the same words."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from helpers.cuda_device import DEVICE, kernels, queue
from helpers.cuda_rewire_cases import Workspaces, open_cuda
from helpers.rewire_cases import (
    BAD,
    FINE,
    Case,
    apply,
    decide,
    open_plan,
    random_case,
    refusal,
    two_layers,
)


def assert_same_error(cases: list[Case], expected: str, **how) -> None:
    on_device = [copy.deepcopy(case).to(DEVICE) for case in cases]
    cpu = refusal(open_plan, cases, **how)
    assert refusal(open_cuda, on_device, **how) == cpu
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
    assert_same_error(cases, "the weights changed during the rewire", prepare=change, threshold=0.5)


@pytest.mark.parametrize(("bad", "expected"), BAD)
def test_bad_decisions_are_named(bad, expected):
    assert_same_error(two_layers(), expected, **{**FINE, **bad})


def test_given_ranks_are_checked_between_chunks():
    cases = [random_case(40, 100, 1500, 1)]
    ranks = list(range(0, 2200, 2))
    ranks[1024] = ranks[1023]
    assert_same_error(cases, "do not ascend", counts=[0], grown=[1100], ranks=[ranks])


def test_a_plan_can_be_applied_again_after_bad_ranks():
    cases = [case.to(DEVICE) for case in two_layers()]
    plan = open_cuda(cases)
    decide(plan, counts=[1, 1], grown=[3, 0])
    for _ in range(2):
        with pytest.raises(ValueError, match="'layer0': the ranks of what grows do not ascend"):
            apply(plan, cases, ranks=[[1, 2, 2], None])
        assert [case.nnz for case in apply(plan, cases, ranks=[[1, 2, 3], None])] == [5, 49]


def test_bad_arguments_are_named():
    cases = [random_case(4, 4, 3, 0)]
    assert_same_error(cases, "threshold: expected a number >= 0", threshold=math.nan)
    assert_same_error(cases, "count: expected >= 0, got -1", count=-1)
    cases = [case.to(DEVICE) for case in cases]
    with pytest.raises(ValueError, match=r"apply: expected a prune_\* before it"):
        apply(open_cuda(cases), cases)
    plan = open_cuda(cases)
    decide(plan, count=1)
    with pytest.raises(ValueError, match="outputs: expected one for each of 1 layers, got 0"):
        plan.apply(0, 0, [])
    with pytest.raises(ValueError, match="'layer0': expected memory for its new pattern, got none"):
        plan.apply(0, 0, [(0, 0, [], 0)])
    decide(plan, count=0)
    with pytest.raises(ValueError, match="item_size: expected at least 1 byte, got 0"):
        plan.apply(0, 0, [(0, 0, [(0, 0, 0)], 0)])
    too_many = [("x", 4, 4, 17, 0, 0, 0, "float32", 0)]
    with pytest.raises(ValueError, match="17 non-zeros do not fit 4 x 4 positions"):
        kernels().RewirePlan(too_many, *queue(), Workspaces())
