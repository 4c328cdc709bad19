"""SET, RigL, SNFS and DSR against their oracles, on models, after a real backward pass."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.method_cases import (
    OPTIMIZERS,
    Bundle,
    assert_frozen_untouched,
    assert_rewired,
    bundles,
    oracle_layers,
    snapshot,
)
from helpers.method_oracles import (
    best_free,
    cosine,
    dsr_growth,
    dsr_pruned,
    global_order,
    next_threshold,
    order,
    set_counts,
    snfs_counts,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR, SET, SNFS, RigL
from dsr_kernels.rewiring.allocation import ALLOCATIONS, growth_weights

QUICK = settings(max_examples=40, deadline=None)
FRACTIONS = st.sampled_from([0.1, 0.3, 0.5, 0.9])
ALLOCATED = [(name, 1) for name in ALLOCATIONS] + [("R", power) for power in (-1, 0, 2, 3)]
NAMES = st.sampled_from(list(OPTIMIZERS))


def iterate(bundle, optimizer, seed):
    """An iteration up to the rewirer's step; returns the dense gradients."""
    optimizer.zero_grad()
    gradients = bundle.backward(seed)
    optimizer.step()
    return gradients


def assert_layers_rewired(bundle, before, after, pruned, grown):
    """The pruned[l] smallest of each live layer were pruned."""
    assert_frozen_untouched(bundle, before, after)
    live = bundle.live()
    for i, k, g in zip(live, pruned, grown, strict=True):
        smallest = set(order({p: e[0] for p, e in before[i].items()})[:k])
        assert_rewired(before[i], after[i], smallest, g)


def assert_reported(report, pruned, grown):
    counts = [g if isinstance(g, int) else len(g) for g in grown]
    assert [row.pruned for row in report.layers] == pruned
    assert [row.grown for row in report.layers] == counts
    assert report.pruned == report.grown == sum(pruned)


@QUICK
@given(bundles(), FRACTIONS, NAMES, st.integers(0, 99))
def test_set_replaces_the_smallest_of_each_layer(bundle, fraction, name, seed):
    optimizer = OPTIMIZERS[name](bundle.parameters())
    rewirer = SET(bundle, optimizer, fraction=fraction, every=1, seed=seed)
    iterate(bundle, optimizer, seed)
    before, counts = snapshot(bundle, optimizer), set_counts(oracle_layers(bundle), fraction)
    report = rewirer.step()
    assert_layers_rewired(bundle, before, snapshot(bundle, optimizer), counts, counts)
    assert_reported(report, counts, counts)


@QUICK
@given(bundles(), FRACTIONS, NAMES, st.integers(0, 99))
def test_rigl_grows_where_the_gradient_is_largest(bundle, fraction, name, seed):
    optimizer = OPTIMIZERS[name](bundle.parameters())
    rewirer = RigL(bundle, optimizer, fraction=fraction, every=2, length=5, seed=seed)
    iterate(bundle, optimizer, seed)
    assert rewirer.step() is None
    gradients = iterate(bundle, optimizer, seed + 1)
    before, layers = snapshot(bundle, optimizer), oracle_layers(bundle)
    counts = set_counts(layers, cosine(fraction, 2, 5))
    grown = [
        best_free(layer, gradients[i], count)
        for layer, i, count in zip(layers, bundle.live(), counts, strict=True)
    ]
    report = rewirer.step()
    assert_layers_rewired(bundle, before, snapshot(bundle, optimizer), counts, grown)
    assert_reported(report, counts, grown)


@pytest.mark.parametrize("growth", ["gradient", "random"])
@QUICK
@given(bundles(), FRACTIONS, NAMES, st.integers(0, 99))
def test_snfs_grows_by_momentum(growth, bundle, fraction, name, seed):
    optimizer = OPTIMIZERS[name](bundle.parameters())
    rewirer = SNFS(bundle, optimizer, fraction=fraction, every=2, length=5, growth=growth)
    iterate(bundle, optimizer, seed)
    assert rewirer.step() is None
    momenta = momenta_of(bundle, optimizer)  # as of the backward pass, or after the step
    gradients = iterate(bundle, optimizer, seed + 1)
    if growth == "random":
        momenta = momenta_of(bundle, optimizer)
    before, layers = snapshot(bundle, optimizer), oracle_layers(bundle)
    pruned, grown = snfs_counts(layers, cosine(fraction, 2, 5), momenta)
    if growth == "gradient":
        places = zip(layers, bundle.live(), grown, strict=True)
        grown = [best_free(layer, gradients[i], count) for layer, i, count in places]
    report = rewirer.step()
    assert_layers_rewired(bundle, before, snapshot(bundle, optimizer), pruned, grown)
    assert_reported(report, pruned, grown)


def test_snfs_gives_back_what_was_lost_while_there_is_no_momentum():
    bundle = Bundle([SparseLinear(9, 7, nnz=n) for n in (1, 1, 3)])
    optimizer = OPTIMIZERS["adam"](bundle.parameters())
    rewirer = SNFS(bundle, optimizer, fraction=0.5, fraction_schedule="constant", every=1)
    bundle.backward(0)
    assert [row.grown for row in rewirer.step().layers] == [0, 0, 2]  # each has one survivor
    bundle.backward(1)
    optimizer.step()
    rewirer.step()
    with pytest.raises(ValueError, match=r"expected one with momentum .* got SGD without"):
        SNFS(bundle, torch.optim.SGD(bundle.parameters(), lr=0.1), every=1, stop=9)


@pytest.mark.parametrize("growth", ["gradient", "random"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_momentum_that_is_not_finite_stops_the_rewire_but_no_backward_pass(growth, bad):
    bundle = Bundle([SparseLinear(9, 7, nnz=n) for n in (20, 30)])
    optimizer = OPTIMIZERS["adam"](bundle.parameters())
    rewirer = SNFS(bundle, optimizer, every=1, stop=9, growth=growth)
    iterate(bundle, optimizer, 0)
    rewirer.step()
    optimizer.state[bundle.layers[1].weight_values]["exp_avg"][0] = bad
    bundle.backward(1)
    before, patterns = snapshot(bundle), [layer.col_indices for layer in bundle.layers]
    with pytest.raises(ValueError, match=r"the momentum of layer 'layers\.1' is not finite"):
        rewirer.step()
    assert snapshot(bundle) == before and rewirer.iteration == 1
    assert all(a is b.col_indices for a, b in zip(patterns, bundle.layers, strict=True))


def momenta_of(bundle, optimizer) -> list[list[float]]:
    values = [bundle.layers[i].weight_values for i in bundle.live()]
    states = [optimizer.state.get(v, {}) for v in values]
    found = [s.get("momentum_buffer", s.get("exp_avg", torch.empty(0))) for s in states]
    return [m.double().numpy() for m in found]


@QUICK
@given(
    bundles(),
    st.one_of(st.sampled_from([0.1, 1 / 3, 0.5, 1.0, 5.0]), st.integers(1, 40)),
    st.sampled_from(ALLOCATED),
    st.integers(0, 99),
)
def test_dsr_with_every_allocation(bundle, how_much, allocated, seed):
    exact = isinstance(how_much, int)
    allocation, power = allocated
    optimizer = OPTIMIZERS["momentum"](bundle.parameters())
    layers = oracle_layers(bundle)
    nnz = sum(len(values) for _, values in layers)
    target = min(how_much, nnz) if exact else max(1, nnz // 3)
    arguments = {"prune_count": target, "allocation": allocation, "power": power, "every": 1}
    if exact:
        rewirer = DSR(bundle, optimizer, threshold="exact", seed=seed, **arguments)
    else:
        rewirer = DSR(bundle, optimizer, initial_threshold=how_much, seed=seed, **arguments)
    iterate(bundle, optimizer, seed)
    before = snapshot(bundle, optimizer)
    chosen = dsr_pruned(layers, how_much, target if exact else None)
    pruned = [sum(j == k for j, _ in chosen) for k in range(len(layers))]
    grown = dsr_growth(layers, pruned, allocation, power)
    report = rewirer.step()
    after = snapshot(bundle, optimizer)
    assert_frozen_untouched(bundle, before, after)
    for k, i in enumerate(bundle.live()):
        assert_rewired(before[i], after[i], {p for j, p in chosen if j == k}, grown[k])
    assert_reported(report, pruned, grown)
    magnitudes = [abs(layers[i][1][p]) for i, p in global_order(layers)]
    if exact:
        largest = max((abs(layers[i][1][p]) for i, p in chosen), default=0.0)
        assert report.threshold == report.next_threshold == largest
    else:
        below = sum(m < how_much for m in magnitudes)
        wanted = next_threshold(how_much, below, target, len(magnitudes))
        assert report.next_threshold == rewirer.threshold == wanted


def test_allocations_differ():
    """In layers of a middling density each gives the numbers of its own."""
    shapes = [(40, 50, 300), (40, 50, 900), (20, 30, 350), (80, 30, 350)]
    grown = {}
    for allocation, power in ALLOCATED:
        torch.manual_seed(0)
        bundle = Bundle([SparseLinear(i, o, nnz=nnz) for i, o, nnz in shapes])
        optimizer = OPTIMIZERS["momentum"](bundle.parameters())
        layers = oracle_layers(bundle)
        pruned = [sum(j == k for j, _ in dsr_pruned(layers, None, 400)) for k in range(4)]
        report = DSR(
            bundle,
            optimizer,
            prune_count=400,
            threshold="exact",
            allocation=allocation,
            power=power,
        ).rewire()
        grown[allocation, power] = tuple(dsr_growth(layers, pruned, allocation, power))
        assert_reported(report, pruned, list(grown[allocation, power]))
    assert len(set(grown.values())) == len(ALLOCATED) - 1  # anti is R to the power of -1


@pytest.mark.parametrize("power", [0.5, -0.5, 1.5])
def test_dsr_with_a_power_that_is_no_integer(power):
    weights = growth_weights("R", power, [10, 5, 0, 3], [1, 0, 0, 2], [0] * 4)
    assert [float(w) for w in weights] == [9**power, 5**power, 0, 1]
    assert math.isclose(float(weights[1] / weights[0]), (5 / 9) ** power)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fraction": 1.0}, r"^fraction: expected a number in \(0, 1\), got 1.0"),
        ({"final_fraction": 0.4}, r"^final_fraction: expected a number in \[0, 0.3\], got 0.4"),
        ({"fraction_schedule": "cosin"}, "^fraction_schedule: .* did you mean 'cosine'"),
        ({"fraction_schedule": "exponential"}, "^final_fraction: expected a number above 0"),
        ({"stop": None}, "^length: expected the iterations over which a 'cosine' fraction falls"),
        ({"growth": "gradients"}, "^growth: .* did you mean 'gradient'"),
        ({"optimizer": None}, "^optimizer: expected the optimizer of the model's values"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    layer = SparseLinear(8, 8)
    fine = {"optimizer": torch.optim.SGD(layer.parameters(), lr=0.1), "stop": 10}
    with pytest.raises(ValueError, match=message):
        RigL(layer, **{**fine, **arguments})


class NamedOtherwise(torch.optim.Optimizer):
    """Momentum, under a name that is neither SGD's nor Adam's."""

    def __init__(self, parameters):
        super().__init__(parameters, {"betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                self.state[p]["m"] = p.grad.clone()


def test_snfs_refuses_momentum_that_it_does_not_find():
    layer = SparseLinear(6, 4, nnz=8)
    optimizer = NamedOtherwise(layer.parameters())
    rewirer = SNFS(layer, optimizer, every=1, stop=9)
    layer(torch.randn(3, 6)).square().sum().backward()
    optimizer.step()
    before = layer.col_indices.clone()
    with pytest.raises(ValueError, match=r"as momentum_buffer or exp_avg, .* layer '', got m;"):
        rewirer.step()
    assert torch.equal(layer.col_indices, before) and rewirer.iteration == 0
