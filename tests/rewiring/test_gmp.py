"""Gradual magnitude pruning: exact numbers at every step, and which weights are pruned."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.method_cases import (
    OPTIMIZERS,
    assert_frozen_untouched,
    assert_rewired,
    bundles,
    oracle_layers,
    snapshot,
)
from helpers.method_oracles import global_order, gmp_count, order
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import GMP


def final(numel: int, sparsity: float) -> int:
    kept = {0.9: (1, 10), 0.5: (1, 2), 0.25: (3, 4), 0.0: (1, 1)}[sparsity]
    return max(1, numel * kept[0] // kept[1])


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("kind", ["cubic", "exponential"])
@settings(max_examples=30, deadline=None)
@given(
    bundles(),
    st.sampled_from([0.9, 0.5, 0.25, 0.0]),
    st.sampled_from(list(OPTIMIZERS)),
    st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(1, 6)),
)
def test_counts_at_every_step_and_what_goes(scope, kind, bundle, sparsity, name, times):
    begin, every, length = times
    last = [final(layer.numel, sparsity) for layer in bundle.layers]
    fitting = [m.nnz >= n for m, n in zip(bundle.layers, last, strict=True)]
    optimizer = OPTIMIZERS[name](bundle.parameters())
    arguments = {"final_sparsity": sparsity, "begin": begin, "end": begin + length}
    arguments |= {"every": every, "scope": scope, "density_schedule": kind}
    live = bundle.live()
    total = sum(bundle.layers[i].nnz for i in live), sum(last[i] for i in live)
    if (scope == "layer" and not all(fitting)) or total[0] < total[1]:
        with pytest.raises(ValueError, match=r"final_sparsity"):
            GMP(bundle, optimizer, **arguments)
        return
    rewirer = GMP(bundle, optimizer, **arguments)
    first = [layer.nnz for layer in bundle.layers]
    for step in range(1, begin + length + 3):
        bundle.backward(step)
        optimizer.step()
        before, layers = snapshot(bundle, optimizer), oracle_layers(bundle)
        report = rewirer.step()
        after = snapshot(bundle, optimizer)
        due = begin < step <= begin + length and (step % every == 0 or step == begin + length)
        assert (report is not None) == due
        if not due:
            assert before == after
            continue
        span = begin, begin + length, step, kind
        if scope == "layer":
            counts = [gmp_count(first[i], last[i], *span) for i in live]
            pruned = [
                set(order(values)[: len(values) - count])
                for (_, values), count in zip(layers, counts, strict=True)
            ]
            assert [len(after[i]) for i in live] == counts
        else:
            now = sum(len(values) for _, values in layers)
            count = gmp_count(*total, *span) if total[0] > total[1] else now
            smallest = global_order(layers)[: now - count]
            pruned = [{p for j, p in smallest if j == k} for k in range(len(live))]
            assert sum(len(after[i]) for i in live) == count
        assert_frozen_untouched(bundle, before, after)
        for i, left in zip(live, pruned, strict=True):
            assert_rewired(before[i], after[i], left, 0)
        assert report.grown == 0 and report.pruned == sum(map(len, pruned))
    if scope == "layer":
        assert [bundle.layers[i].nnz for i in live] == [last[i] for i in live]
    assert sum(bundle.layers[i].nnz for i in live) == total[1]


def pair(**arguments):
    torch.manual_seed(0)
    model = nn.Sequential(SparseLinear(10, 10, sparsity=0.0), SparseLinear(10, 10, sparsity=0.0))
    model[0].weight_values.data.mul_(1e-9)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return model, GMP(model, optimizer, **{"final_sparsity": 0.5, "end": 4, "every": 1} | arguments)


def test_a_layer_that_lost_more_does_not_make_the_others_lose_more():
    model, rewirer = pair(scope="global")
    totals = []
    for _ in range(4):
        rewirer.step()
        totals.append(model[0].nnz + model[1].nnz)
    assert totals == [gmp_count(200, 100, 0, 4, step, "cubic") for step in (1, 2, 3, 4)]
    assert totals[-1] == 100 and model[0].nnz == 1  # its largest weight


def test_a_decimal_sparsity_is_what_was_written():
    layer = SparseLinear(1000, 1, sparsity=0.0)
    rewirer = GMP(layer, torch.optim.SGD(layer.parameters(), lr=0.1), final_sparsity=0.9, end=1)
    rewirer.step()
    assert layer.nnz == 100  # 1 - 0.9 is a little less than 0.1 in binary


def test_what_it_began_with_is_resumed():
    model, rewirer = pair()
    for _ in range(2):
        rewirer.step()
    saved, state = model.state_dict(), rewirer.state_dict()
    other, resumed = pair()
    other.load_state_dict(saved)
    later = GMP(
        other, torch.optim.SGD(other.parameters(), lr=0.1), final_sparsity=0.5, end=4, every=1
    )
    later.load_state_dict(state)
    for one in (rewirer, later):
        one.step()
    assert (
        [m.nnz for m in other]
        == [m.nnz for m in model]
        == [gmp_count(100, 50, 0, 4, 3, "cubic")] * 2
    )
    with pytest.raises(ValueError, match=r"initial: expected the layers \['0', '1'\], got \['0'\]"):
        resumed.load_state_dict({**state, "initial": {"0": 5}})
    with pytest.raises(ValueError, match="initial: 1: expected an integer of at least 0, got -1"):
        resumed.load_state_dict({**state, "initial": {"0": 5, "1": -1}})
    assert resumed.iteration == 0 and resumed.initial == {"0": 100, "1": 100}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"final_sparsity": 1.0}, r"final_sparsity: expected a number in \[0, 1\)"),
        ({"final_sparsity": math.nan}, "final_sparsity: expected"),
        ({"end": 0}, "end: expected an integer of at least 1, got 0"),
        ({"begin": 4}, "begin: expected less than end = 4, got 4"),
        ({"scope": "globl"}, "scope: unknown value 'globl'; did you mean 'global'"),
        ({"density_schedule": "cosine"}, "density_schedule: unknown value 'cosine'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pair(**arguments)
    with pytest.raises(ValueError, match="optimizer: expected the optimizer"):
        GMP(SparseLinear(4, 4), None, final_sparsity=0.9, end=4)
