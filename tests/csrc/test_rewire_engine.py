"""The native rewire engine against the readable reference, and its invariants."""

import math
from collections import Counter

import pytest
import torch
from helpers.rewire_cases import (
    Case,
    assert_equals_reference,
    layers,
    native_rewire,
    open_plan,
    random_case,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.distribution import share_out

SEEDS = st.integers(0, 2**64 - 1)
QUICK = settings(max_examples=80, deadline=None)
THRESHOLDS = st.sampled_from([0.0, 1e-9, 0.1, 1 / 3, 0.5, 1.0, 1.5, math.inf])


@QUICK
@given(layers(), THRESHOLDS, SEEDS, st.integers(0, 2**32 - 1))
def test_threshold_rewire_equals_the_reference(cases, threshold, seed, step):
    how = {"threshold": threshold, "seed": seed, "step": step}
    after, _ = native_rewire(cases, **how)
    assert_equals_reference(cases, after, **how)


@QUICK
@given(layers(), st.integers(0, 80), SEEDS)
def test_exact_rewire_equals_the_reference(cases, count, seed):
    how = {"count": count, "seed": seed}
    after, plan = native_rewire(cases, **how)
    assert_equals_reference(cases, after, **how)
    assert sum(plan.pruned) == min(count, plan.prunable, plan.total_capacity)


@QUICK
@given(layers(), st.one_of(THRESHOLDS, st.integers(0, 80)), SEEDS)
def test_invariants(cases, how_much, seed):
    how = {"count" if isinstance(how_much, int) else "threshold": how_much}
    after, plan = native_rewire(cases, seed=seed, **how)
    assert sum(case.nnz for case in after) == sum(case.nnz for case in cases)
    assert sum(plan.grown) == sum(plan.pruned)
    for old, new in zip(cases, after, strict=True):
        positions = new.positions()
        assert positions == sorted(set(positions))
        assert new.crow[0] == 0 and new.crow[-1] == new.nnz
        assert new.nnz == 0 or (new.col.min() >= 0 and new.col.max() < new.row_length)
        before = dict(
            zip(
                old.positions(),
                zip(old.values.tolist(), old.momentum.tolist(), strict=True),
                strict=True,
            )
        )
        for p, value, momentum in zip(
            positions, new.values.tolist(), new.momentum.tolist(), strict=True
        ):
            # survivors moved exactly; whatever is new was free before and starts at zero
            assert (value, momentum) == before.get(p, (0, 0))
        gone = [before[p][0] for p in set(before) - set(positions)]
        kept = [before[p][0] for p in set(before) & set(positions)]
        if before:
            assert max(map(abs, kept)) == max(abs(value) for value, _ in before.values())
        if gone and "threshold" in how:
            assert max(map(abs, gone)) < how_much


@QUICK
@given(layers(), st.one_of(THRESHOLDS, st.integers(0, 80)))
def test_one_and_two_threads_agree_bit_for_bit(cases, how_much):
    how = {"count" if isinstance(how_much, int) else "threshold": how_much}
    one, _ = native_rewire(cases, threads=1, **how)
    for threads in (2, 3):
        for a, b in zip(one, native_rewire(cases, threads=threads, **how)[0], strict=True):
            for name in ("crow", "col", "values", "momentum"):
                assert torch.equal(getattr(a, name), getattr(b, name))


def test_large_layers_of_both_dtypes_equal_the_reference_on_two_threads():
    cases = [
        random_case(64, 300, 2000, 0),
        random_case(10, 100, 990, 1, torch.float64),
        random_case(50, 50, 1, 2),
        random_case(128, 90, 3000, 3),
    ]
    for how in ({"threshold": 0.1}, {"count": 2500}, {"count": 6000}):
        after, _ = native_rewire(cases, threads=2, seed=5, **how)
        assert_equals_reference(cases, after, seed=5, **how)


def test_equal_magnitudes_go_from_the_end():
    cases = [Case.make(1, 20, range(4), [1.0, -1.0, 1.0, -1.0]) for _ in range(3)]
    _, plan = native_rewire(cases, count=5)
    assert plan.pruned == [0, 2, 3]  # the last layer down to its largest entry, then the one before
    after, _ = native_rewire(cases[:1], count=2)
    assert after[0].positions()[:2] == [0, 1]


def test_an_emptied_layer_keeps_its_largest_weight_the_first_of_equals():
    small = Case.make(2, 10, [3, 7, 11, 15], [0.1, -0.3, 0.3, 0.2])
    large = Case.make(2, 10, [1, 2, 3, 4], [5.0, 6.0, 7.0, 8.0])
    after, plan = native_rewire([small, large], threshold=1.0)
    assert plan.pruned == [3, 0]
    survivors = [p for p, m in zip(after[0].positions(), after[0].momentum, strict=True) if m > 0]
    assert survivors == [7]
    assert plan.grown == [1, 2]  # 3 shared by 1 and 4 survivors: 0.6 and 2.4


def test_a_full_layer_gets_no_growth_and_the_others_get_its_share():
    full = Case.make(2, 5, range(10), [9.0] * 10)
    cases = [full, random_case(10, 100, 50, 0), random_case(10, 100, 100, 1)]
    _, plan = native_rewire(cases, threshold=0.3)
    pruned = plan.pruned
    assert pruned[0] == 0 and min(pruned[1:]) > 0
    assert plan.grown == share_out(
        sum(pruned), [10, 50 - pruned[1], 100 - pruned[2]], [0, 950, 900]
    )
    assert plan.grown[0] == 0


def test_a_nearly_full_network_prunes_only_what_it_can_regrow():
    values = [0.1 * i for i in range(1, 20)]
    after, plan = native_rewire([Case.make(4, 5, range(19), values)], threshold=1.55)
    assert (plan.below, plan.total_capacity, plan.pruned, plan.grown) == (15, 1, [1], [1])
    assert after[0].positions() == list(range(1, 20))  # the smallest went, the only free one came


def test_a_full_network_changes_nothing():
    case = Case.make(3, 4, range(12), [0.001 * i for i in range(12)])
    after, plan = native_rewire([case], threshold=1.0)
    assert plan.pruned == [0]
    assert torch.equal(after[0].values, case.values) and torch.equal(after[0].col, case.col)


def test_a_threshold_above_everything_leaves_one_survivor_per_layer():
    cases = [random_case(10, 100, 50, 0), random_case(10, 100, 100, 1)]
    after, plan = native_rewire(cases, threshold=1e9)
    assert plan.pruned == [49, 99] and plan.grown == [74, 74]
    assert [case.nnz for case in after] == [75, 75]


def test_prune_count_above_the_total_is_limited_to_all_but_the_largest_of_each_layer():
    cases = [random_case(10, 100, 50, 0), random_case(10, 100, 100, 1)]
    _, plan = native_rewire(cases, count=10**9)
    assert plan.pruned == [49, 99]


def test_empty_and_single_entry_layers():
    cases = [
        Case.make(3, 4, [], []),
        Case.make(3, 4, [5], [1e-30]),
        random_case(5, 40, 30, 2),
    ]
    after, plan = native_rewire(cases, threshold=0.5)
    assert plan.pruned[:2] == [0, 0] and plan.grown[0] == 0
    assert after[0].crow.tolist() == [0, 0, 0, 0]
    after, plan = native_rewire(cases[:1], threshold=0.5)
    assert plan.prunable == 0 and after[0].nnz == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_non_finite_weight_is_refused_with_its_place(bad, dtype):
    case = random_case(10, 100, 50, 1, dtype)
    case.values[20] = bad
    row, col = divmod(case.positions()[20], 100)
    with pytest.raises(ValueError, match=rf"'layer1': .*row {row}, column {col} is -?(nan|inf)"):
        open_plan([random_case(4, 4, 3, 0), case])


def test_a_threshold_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"threshold: expected a number >= 0, got -?nan"):
        open_plan([random_case(4, 4, 3, 0)]).prune_below(math.nan)


@pytest.mark.parametrize("name", ["crow", "col"])
def test_a_broken_pattern_is_refused(name):
    case = random_case(10, 100, 50, 1)
    index = getattr(case, name)
    index.copy_(index.flip(0))
    with pytest.raises(ValueError, match=rf"layer 'layer0'.*{name}_indices"):
        native_rewire([case], threshold=0.5)


def test_weights_that_change_between_pruning_and_applying_are_noticed():
    case = random_case(10, 100, 50, 1)
    plan = open_plan([case])
    plan.prune_below(0.5)
    plan.grow_proportionally()
    case.values.fill_(1.0)
    crow, col = torch.empty(11, dtype=torch.int32), torch.empty(50, dtype=torch.int32)
    with pytest.raises(ValueError, match="the weights changed during the rewire"):
        plan.apply(0, 0, [(crow.data_ptr(), col.data_ptr(), [], 0)])


@pytest.mark.parametrize("end", [-1, 10**6])
def test_rows_that_change_between_pruning_and_applying_are_noticed(end):
    """Entries beyond the layer's would be written beyond the engine's memory."""
    case = random_case(10, 100, 50, 1)
    plan = open_plan([case])
    plan.prune_below(0.5)
    plan.grow_proportionally()
    case.crow[4] = end
    crow, col = torch.empty(11, dtype=torch.int32), torch.empty(50, dtype=torch.int32)
    with pytest.raises(ValueError, match="not ascending and in range in every row"):
        plan.apply(0, 0, [(crow.data_ptr(), col.data_ptr(), [], 0)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0, 1e30])
def test_scores_that_change_after_opening_never_lead_out_of_an_array(bad):
    case = random_case(10, 100, 50, 1)
    plan = open_plan([case])
    plan.prune_below(0.5)
    case.values.fill_(bad)
    for decide in (
        lambda: plan.prune_below(0.5),
        lambda: plan.prune_smallest(20),
        lambda: plan.prune_smallest_each([20]),
    ):
        decide()


def test_regrowth_is_uniform_over_the_free_positions():
    case = Case.make(3, 7, [0, 4, 5, 9, 20], [0.1, 0.2, 0.3, 9.0, 8.0])
    free = set(range(21)) - set(case.positions())
    counts, seeds = Counter(), 4000
    for seed in range(seeds):
        after, _ = native_rewire([case], threshold=1.0, seed=seed)
        counts.update(set(after[0].positions()) - {9, 20})
    assert set(counts) == free
    # 3 of 16 drawn without replacement: each count has variance seeds * p (1 - p)
    p = 3 / 16
    chi2 = sum((counts[f] - seeds * p) ** 2 for f in free) / (seeds * p * (1 - p)) * 15 / 16
    assert abs(chi2 - 15) < 5 * math.sqrt(2 * 15)


def test_steps_and_layers_draw_different_positions():
    case = random_case(10, 1000, 500, 3)
    same, other_layer = native_rewire([case, case], threshold=0.5)[0]
    other_step = native_rewire([case, case], threshold=0.5, step=1)[0][0]
    other_seed = native_rewire([case, case], threshold=0.5, seed=1)[0][0]
    grown = [
        set(c.positions()) - set(case.positions())
        for c in (same, other_layer, other_step, other_seed)
    ]
    for other in grown[1:]:
        assert len(grown[0] & other) < 0.2 * len(grown[0])


def test_more_than_two_to_the_31_positions():
    rows, row_length, nnz = 60_000, 50_000, 1000
    generator = torch.Generator().manual_seed(0)
    positions = torch.randint(rows * row_length, (nnz,), generator=generator).unique().tolist()
    values = [(-1) ** i * (i + 1) / nnz for i in range(len(positions))]
    case = Case.make(rows, row_length, positions, values)
    after, plan = native_rewire([case], threshold=0.5)
    assert plan.grown == plan.pruned and plan.pruned[0] > 400
    new = after[0].positions()
    assert new == sorted(set(new)) and len(new) == case.nnz and new[-1] < rows * row_length
    grown = sorted(set(new) - set(positions))
    assert len(grown) == plan.grown[0] and grown[-1] > 2**31
    assert after[0].crow[-1] == len(new)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 30)), min_size=1, max_size=6),
    st.floats(0, 1),
)
def test_growth_is_shared_out_exactly_and_fairly(parties, part):
    weights = [w for w, _ in parties]
    capacities = [c if w else 0 for w, c in parties]
    total = round(part * sum(capacities))
    shares = share_out(total, weights, capacities)
    assert sum(shares) == total
    assert all(0 <= s <= c for s, c in zip(shares, capacities, strict=True))
    # no one below its capacity may be worse off, per weight and beyond rounding, than another
    for i, j in [(i, j) for i in range(len(shares)) for j in range(len(shares))]:
        if weights[i] and weights[j] and shares[i] < capacities[i]:
            assert (shares[j] - 1) * weights[i] <= (shares[i] + 1) * weights[j]
