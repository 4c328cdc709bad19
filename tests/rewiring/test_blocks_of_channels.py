"""Blocks of output channels are pruned and grown together, by every method as single weights are.

The oracle is a smaller layer of single weights, or the methods' own oracles on blocks' means.
"""

from __future__ import annotations

import pytest
import torch
from helpers.block_cases import (
    as_oracle,
    block_means,
    bundles,
    eighths,
    means,
    patterns,
    rows_of,
    stand_ins,
)
from helpers.method_cases import OPTIMIZERS, Bundle
from helpers.method_oracles import best_free, cosine, gmp_count, order, set_counts, share_growth
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.nn import SparseModule
from dsr_kernels.rewiring import DSR, GMP, SET, SNFS, RigL
from dsr_kernels.rewiring.allocation import ALLOCATIONS

QUICK = settings(max_examples=40, deadline=None)
FRACTIONS = st.sampled_from([0.1, 0.3, 0.5, 0.9])
SEEDS = st.integers(0, 99)
NAMES = st.sampled_from(list(OPTIMIZERS))


@pytest.fixture(autouse=True)
def one_thread():
    """On a busy machine, small layers mostly wait for other threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sgd(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)


def redraw(bundle: Bundle, small: Bundle, seed: int) -> None:
    """Other weights, so that what has grown is judged, too."""
    generator = torch.Generator().manual_seed(seed)
    for layer, single in zip(bundle.layers, small.layers, strict=True):
        layer.weight_values.data.copy_(eighths(tuple(layer.weight_values.shape), generator))
        single.weight_values.data.copy_(means(layer)[:, None])


def assert_alike(bundle: Bundle, small: Bundle, report, expected) -> None:
    size = bundle.layers[0].block_size
    assert patterns(bundle) == patterns(small)
    assert report.pruned == size * expected.pruned and report.grown == size * expected.grown
    for row, single in zip(report.layers, expected.layers, strict=True):
        counts = single.nnz_before, single.pruned, single.grown, single.nnz_after
        ours = row.nnz_before, row.pruned, row.grown, row.nnz_after
        assert ours == tuple(size * count for count in counts)
    for layer in bundle.layers:
        layer.topology.validate()


# ---- beside a layer of fewer channels ------------------------------------------------------------


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("threshold", ["exact", "adaptive"])
@QUICK
@given(bundles(), st.integers(1, 40), SEEDS, st.sampled_from([0.2, 0.5, 1.2]))
def test_dsr(threshold: str, allocation: str, bundle, count: int, seed: int, start) -> None:
    size, small = bundle.layers[0].block_size, stand_ins(bundle)
    count = min(count, sum(layer.nnz for layer in small.layers))
    arguments = {"threshold": threshold, "allocation": allocation, "seed": seed}
    arguments["initial_threshold"] = start
    rewirers = [
        DSR(model, sgd(model), prune_count=number, **arguments)
        for model, number in ((bundle, size * count), (small, count))
    ]
    for step in range(3):
        report, expected = (rewirer.rewire() for rewirer in rewirers)
        assert_alike(bundle, small, report, expected)
        assert (report.threshold, report.next_threshold) == (
            expected.threshold,
            expected.next_threshold,
        )
        redraw(bundle, small, 10 * seed + step)


@QUICK
@given(bundles(mixed=True), FRACTIONS, SEEDS)
def test_set(bundle, fraction: float, seed: int) -> None:
    """Of several block sizes, too, for layers keep their numbers."""
    small = stand_ins(bundle)
    rewirers = [SET(m, sgd(m), fraction=fraction, seed=seed) for m in (bundle, small)]
    for step in range(3):
        report, expected = (rewirer.rewire() for rewirer in rewirers)
        assert patterns(bundle) == patterns(small)
        pairs = zip(report.layers, expected.layers, bundle.layers, strict=True)
        assert all(row.pruned == layer.block_size * one.pruned for row, one, layer in pairs)
        redraw(bundle, small, 10 * seed + step)


# ---- beside the methods' oracles -----------------------------------------------------------------


def smallest(layer: SparseModule, count: int) -> set[int]:
    return set(order(as_oracle(layer)[1])[:count])


def assert_moved(old: dict, layer: SparseModule, optimizer, pruned: set, grown: set | int) -> None:
    """Blocks are rows: survivors as they were, with their state, and grown ones all 0."""
    new = rows_of(layer, optimizer)
    fresh = set(new) - set(old)
    assert set(old) - set(new) == pruned
    assert all(new[p] == old[p] for p in set(old) & set(new))
    assert all(not any(new[p]) for p in fresh)
    assert fresh == grown if isinstance(grown, set) else len(fresh) == grown


@QUICK
@given(bundles(mixed=True), FRACTIONS, NAMES, SEEDS)
def test_rigl_grows_where_the_mean_gradient_is_largest(bundle, fraction, name, seed) -> None:
    optimizer = OPTIMIZERS[name](bundle.parameters())
    rewirer = RigL(bundle, optimizer, fraction=fraction, every=1, length=5, seed=seed)
    gradients = bundle.backward(seed)
    optimizer.step()
    layers = [as_oracle(layer) for layer in bundle.layers]
    counts = set_counts(layers, cosine(fraction, 1, 5))
    before = [rows_of(layer, optimizer) for layer in bundle.layers]
    dying = [smallest(*pair) for pair in zip(bundle.layers, counts, strict=True)]
    rewirer.step()
    for i, layer in enumerate(bundle.layers):
        gradient = block_means(gradients[i], layer.block_size)
        grown = best_free(layers[i], gradient, counts[i])
        assert_moved(before[i], layer, optimizer, dying[i], grown)


@pytest.mark.parametrize("growth", ["gradient", "random"])
@QUICK
@given(bundles(), FRACTIONS, NAMES, SEEDS)
def test_snfs_shares_blocks_by_momentum(growth: str, bundle, fraction, name, seed) -> None:
    optimizer = OPTIMIZERS[name](bundle.parameters())
    rewirer = SNFS(bundle, optimizer, fraction=fraction, every=2, length=5, growth=growth)
    bundle.backward(seed)
    optimizer.step()
    rewirer.step()
    seen = momenta(bundle, optimizer)
    optimizer.zero_grad()
    gradients = bundle.backward(seed + 1)
    optimizer.step()
    seen = momenta(bundle, optimizer) if growth == "random" else seen
    layers = [as_oracle(layer) for layer in bundle.layers]
    pruned = set_counts(layers, cosine(fraction, 2, 5))
    left = [len(values) - count for (_, values), count in zip(layers, pruned, strict=True)]
    free = [most - len(values) for most, values in layers]
    shares = share_growth(sum(pruned), seen if any(seen) else pruned, left, free)
    before = [rows_of(layer, optimizer) for layer in bundle.layers]
    dying = [smallest(*pair) for pair in zip(bundle.layers, pruned, strict=True)]
    rewirer.step()
    for i, layer in enumerate(bundle.layers):
        grown: set[int] | int = shares[i]
        if growth == "gradient":
            grown = best_free(layers[i], block_means(gradients[i], layer.block_size), shares[i])
        assert_moved(before[i], layer, optimizer, dying[i], grown)


def momenta(bundle: Bundle, optimizer) -> list[float]:
    """The mean magnitude of each layer's momentum."""
    states = (optimizer.state[layer.weight_values] for layer in bundle.layers)
    held = (s["momentum_buffer"] if "momentum_buffer" in s else s["exp_avg"] for s in states)
    return [buffer.double().abs().mean().item() for buffer in held]


@pytest.mark.parametrize("kind", ["cubic", "exponential"])
@QUICK
@given(bundles(mixed=True), st.sampled_from([0.5, 0.8, 0.97]), SEEDS)
def test_gmp_prunes_whole_blocks_on_its_schedule(kind: str, bundle, sparsity, seed) -> None:
    firsts = [layer.nnz for layer in bundle.layers]
    lasts = [max(x.block_size, round((1 - sparsity) * x.numel, 6)) for x in bundle.layers]
    lasts = [int(n) - int(n) % x.block_size for n, x in zip(lasts, bundle.layers, strict=True)]
    arguments = {"final_sparsity": sparsity, "end": 4, "density_schedule": kind, "every": 1}
    if any(first < last for first, last in zip(firsts, lasts, strict=True)):
        with pytest.raises(ValueError, match="non-zeros that"):
            GMP(bundle, sgd(bundle), **arguments)
        return
    optimizer = OPTIMIZERS["momentum"](bundle.parameters())
    rewirer = GMP(bundle, optimizer, **arguments)
    for step in range(1, 5):
        bundle.backward(seed + step)
        optimizer.step()
        before = [rows_of(layer, optimizer) for layer in bundle.layers]
        wanted = []
        for layer, first, last in zip(bundle.layers, firsts, lasts, strict=True):
            due = gmp_count(first, last, 0, 4, step, kind)
            wanted.append(min(layer.nnz, max(last, due - due % layer.block_size)))
        dying = [
            smallest(layer, layer.blocks - n // layer.block_size)
            for layer, n in zip(bundle.layers, wanted, strict=True)
        ]
        rewirer.step()
        for i, layer in enumerate(bundle.layers):
            assert layer.nnz == wanted[i]
            assert_moved(before[i], layer, optimizer, dying[i], set())
    assert [layer.nnz for layer in bundle.layers] == lasts


@QUICK
@given(bundles(), st.sampled_from([0.5, 0.8, 0.97]))
def test_gmp_prunes_globally_by_the_blocks_means(bundle, sparsity: float) -> None:
    size, small = bundle.layers[0].block_size, stand_ins(bundle)
    arguments = {"final_sparsity": sparsity, "end": 1, "scope": "global", "every": 1}
    try:
        single = GMP(small, sgd(small), **arguments)
    except ValueError as error:
        with pytest.raises(ValueError, match=str(error)[:14]):
            GMP(bundle, sgd(bundle), **arguments)
        return
    report, expected = GMP(bundle, sgd(bundle), **arguments).step(), single.step()
    assert_alike(bundle, small, report, expected)
    assert report.pruned % size == 0 and report.grown == 0
