"""Every method in training: budgets, resuming, averages, failures half way through."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.method_cases import entries
from helpers.method_oracles import gmp_count
from helpers.method_training import (
    ITERATIONS,
    METHODS,
    OPTIMIZERS,
    Training,
    assert_same,
)

from dsr_kernels import rewiring
from dsr_kernels.nn import named_sparse_modules


def test_no_method_is_forgotten():
    trained = {method for method, _ in METHODS.values()}
    assert trained == set(rewiring.METHODS.values()) - {rewiring.Static}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_budgets_hold_and_a_resumed_run_is_the_same(method, optimizer):
    training = Training(method, optimizer)
    first = [layer.nnz for layer in training.layers]
    last = [layer.numel // 5 for layer in training.layers]
    saved, wanted = None, first
    for step in training.run(0, ITERATIONS):
        counts = [layer.nnz for layer in training.layers]
        if method == "gmp" and training.reports[-1]:
            pairs = zip(first, last, strict=True)
            wanted = [gmp_count(*pair, 2, 24, step, "cubic") for pair in pairs]
        if method == "gmp global" and training.reports[-1]:
            wanted = [gmp_count(sum(first), sum(last), 2, 24, step, "exponential")]
        assert sum(counts) == sum(wanted)
        if method in ("set", "rigl", "deepr", "gmp"):
            assert counts == wanted
        for layer in training.layers:
            layer.topology.validate()
        if step == 14:  # the next iteration is followed by a rewire
            saved = copy.deepcopy([part.state_dict() for part in training.parts])
    assert sum(r is not None for r in training.reports) >= 7
    if method.startswith("gmp"):
        assert sum(layer.nnz for layer in training.layers) == sum(last)
    else:
        assert any(row.pruned for r in training.reports if r for row in r[2])

    resumed = Training(method, optimizer, seed=1)  # all of it must come from the state
    for part, state in zip(resumed.parts, saved, strict=True):
        part.load_state_dict(state)
    assert list(resumed.run(14, ITERATIONS)) == list(range(15, ITERATIONS + 1))
    assert resumed.reports == training.reports[14:]
    assert_same(resumed.state(), training.state())


@pytest.mark.parametrize("method", METHODS)
def test_an_average_follows(method):
    training = Training(method, "momentum")
    list(training.run(0, 14))
    copies = [module for _, module in named_sparse_modules(training.average)]
    training.optimizer.zero_grad()
    training.iterate(14)
    old = [(entries(a), entries(b)) for a, b in zip(training.layers, copies, strict=True)]
    training.rewirer.step()
    new = [(entries(a), entries(b)) for a, b in zip(training.layers, copies, strict=True)]
    for (before, averaged), (after, follows) in zip(old, new, strict=True):
        assert list(after) == list(follows)
        assert all(follows[p] == averaged.get(p, (0.0,)) for p in follows)
        assert set(before) == set(averaged)
    assert any(set(a[0]) != set(b[0]) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_failure_half_way_through_is_taken_back(method):
    training = Training(method, "adam")
    list(training.run(0, 14))
    training.optimizer.zero_grad()
    training.iterate(14)
    module = training.layers[-1]
    replace, calls = module.replace_topology, []

    def fail_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of luck")
        return replace(*args, **kwargs)

    before = training.state()
    module.replace_topology = fail_once
    with pytest.raises(RuntimeError, match="out of luck"):
        training.rewirer.step()
    assert_same(training.state(), before)
    untroubled = Training(method, "adam")
    for one, start in ((training, 15), (untroubled, 0)):
        if start:
            one.rewirer.step()
        list(one.run(start, 16))
    assert_same(training.state(), untroubled.state())


@pytest.mark.parametrize("method", METHODS)
def test_states_travel_and_foreign_ones_are_refused(method, tmp_path):
    training = Training(method, "momentum")
    list(training.run(0, 7))
    state = training.rewirer.state_dict()
    torch.save(state, tmp_path / "rewirer.pt")
    assert_same(torch.load(tmp_path / "rewirer.pt", weights_only=True), state)
    for name in METHODS:
        other = Training(name, "momentum").rewirer
        before = other.state_dict()
        if type(other) is type(training.rewirer):
            continue
        with pytest.raises(ValueError, match="state_dict: expected method"):
            other.load_state_dict(state)
        assert_same(other.state_dict(), before)
    for key, message in (("version", "expected version 3"), ("iteration", "iteration: expected")):
        with pytest.raises(ValueError, match=message):
            training.rewirer.load_state_dict({**state, "seed": 5, key: -1})
        assert_same(training.rewirer.state_dict(), state)
