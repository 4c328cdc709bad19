"""The native rewire engine where the caller decides: so many in each layer, at given positions."""

import pytest
import torch
from helpers.rewire_cases import (
    BAD,
    FINE,
    Case,
    apply,
    assert_equals_reference,
    decide,
    layers_and_decisions,
    native_rewire,
    open_plan,
    random_case,
    refusal,
    two_layers,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=100, deadline=None)
@given(layers_and_decisions(), st.integers(0, 2**64 - 1), st.sampled_from([1, 2]))
def test_what_is_decided_by_the_caller_equals_the_reference(drawn, seed, threads):
    cases, how = drawn
    after, plan = native_rewire(cases, seed=seed, threads=threads, **how)
    skip = how.pop("skip")
    assert_equals_reference(cases, after, seed=seed, **how)
    assert plan.grown == how["grown"]
    if "counts" in how:
        limits = [max(case.nnz - 1, 0) for case in cases]
        assert plan.pruned == [min(pair) for pair in zip(how["counts"], limits, strict=True)]
    for old, new, pruned, grown in zip(cases, after, plan.pruned, plan.grown, strict=True):
        assert (old is new) == (skip and pruned == grown == 0)


def test_every_layer_has_a_threshold_of_its_own():
    cases = [
        Case.make(1, 20, range(4), [0.5, -0.25, 0.25, -0.25]),
        Case.make(1, 20, range(3), [8.0, 2.0, 4.0], torch.float64),
        Case.make(1, 20, range(3), [0.1, 0.2, 0.3]),
    ]
    after, plan = native_rewire(cases, counts=[2, 1, 0], grown=[0, 0, 0])
    assert plan.thresholds == [0.25, 2.0, 0.0] and plan.threshold == 2.0
    assert [case.positions() for case in after] == [[0, 1], [0, 2], [0, 1, 2]]


def test_a_full_layer_can_shrink_and_grow_again():
    full = Case.make(2, 5, range(10), [0.1 * i for i in range(1, 11)])
    _, plan = native_rewire([full], count=4)
    assert plan.pruned == [0]  # where as many have to come back
    (less,), plan = native_rewire([full], count=4, grown=[0])
    assert plan.pruned == [4] and less.positions() == [4, 5, 6, 7, 8, 9]
    (more,), _ = native_rewire([less], counts=[0], grown=[2], ranks=[[1, 3]])
    assert more.positions() == [1, 3, 4, 5, 6, 7, 8, 9]
    assert more.momentum.tolist() == [0, 0, *range(5, 11)]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 12, 36, 72])
def test_items_of_any_size_move(size):
    case = random_case(30, 50, 400, 0)
    case.momentum = torch.randint(1, 256, (400, size), dtype=torch.uint8)
    (after,), _ = native_rewire([case], counts=[150], grown=[200])
    before = dict(zip(case.positions(), case.momentum, strict=True))
    for position, item in zip(after.positions(), after.momentum, strict=True):
        assert torch.equal(item, before.get(position, torch.zeros_like(item)))


@pytest.mark.parametrize(("bad", "expected"), BAD)
def test_bad_decisions_are_refused(bad, expected):
    assert expected in refusal(open_plan, two_layers(), **{**FINE, **bad})


def test_bad_outputs_are_refused():
    cases = two_layers()
    plan = open_plan(cases)
    decide(plan, counts=[0, 1], grown=[0, 0])
    for outputs, expected in [
        ([(0, 0, [], 0)], "outputs: expected one for each of 2 layers, got 1"),
        ([(0, 0, [], 0)] * 2, "'layer1': expected memory for its new pattern, got none"),
        ([(0, 0, [(0, 0, 0)], 0)] * 2, "item_size: expected at least 1 byte, got 0"),
    ]:
        with pytest.raises(ValueError, match=expected):
            plan.apply(0, 0, outputs)
    assert apply(plan, cases, skip=True)[1].nnz == 49  # a refusal has not harmed the plan
