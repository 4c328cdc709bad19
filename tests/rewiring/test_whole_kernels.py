"""DSR with whole kernels, and how growth is shared out."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from helpers.method_cases import Bundle, assert_rewired, entries, place
from helpers.method_oracles import global_order, next_threshold, share_growth, share_out
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dsr_kernels import distribution
from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.rewiring import DSR, allocation
from dsr_kernels.topology import Topology

QUICK = settings(max_examples=60, deadline=None)
SHAPES = [(1, 1), (1, 2), (2, 2), (2, 4)]  # areas whose means are exact


@QUICK
@given(st.data())
def test_shares_equal_the_level_of_water(data):
    parties = data.draw(st.lists(st.tuples(*[st.integers(0, 40)] * 3), min_size=1, max_size=6))
    weights, capacity, survivors = (list(column) for column in zip(*parties, strict=True))
    weights = [Fraction(w, data.draw(st.integers(1, 5))) for w in weights]
    capacity = [r if s or w else 0 for r, s, w in zip(capacity, survivors, weights, strict=True)]
    total = data.draw(st.integers(0, sum(capacity)))
    shares = allocation.share_growth(total, weights, survivors, capacity)
    assert shares == share_growth(total, weights, survivors, capacity)
    assert sum(shares) == total and all(0 <= s <= r for s, r in zip(shares, capacity, strict=True))
    assert distribution.share_out(total, weights, capacity) == share_out(total, weights, capacity)


@QUICK
@given(st.data())
def test_shares_in_blocks(data):
    layer = st.tuples(st.integers(0, 9), st.integers(0, 9), st.sampled_from([1, 2, 4, 9]))
    parties = data.draw(st.lists(layer, min_size=1, max_size=6))
    survivors, capacity, blocks = (list(column) for column in zip(*parties, strict=True))
    survivors = [s * b for s, b in zip(survivors, blocks, strict=True)]
    capacity = [r * b if s else 0 for s, r, b in zip(survivors, capacity, blocks, strict=True)]
    total = data.draw(st.integers(0, sum(capacity)))
    shares = allocation.share_in_blocks(total, survivors, survivors, capacity, blocks)
    left, fair = total - sum(shares), share_out(total, survivors, capacity)
    assert left >= 0
    for share, ideal, block, most in zip(shares, fair, blocks, capacity, strict=True):
        assert share % block == 0 and 0 <= share <= most
        assert share > ideal - block
        assert share + block > most or left < block  # nothing more fits
    if len(set(blocks)) == 1 and all(f % blocks[0] == 0 for f in fair):
        assert shares == fair


@st.composite
def kernel_bundles(draw, shapes=None) -> Bundle:
    """Layers of whole kernels; weights are multiples of 1/4 and no more than 1."""
    random = draw(st.randoms(use_true_random=False))
    layers = []
    for _ in range(draw(st.integers(1, 3))):
        kernel, groups = draw(st.sampled_from(shapes or SHAPES)), draw(st.sampled_from([1, 2]))
        inputs, outputs = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))
        if kernel == (1, 1) and draw(st.booleans()):
            layer, groups, area = SparseLinear(inputs, outputs), 1, 1
        else:
            layer = SparseConv2d(inputs, outputs, kernel, groups=groups, padding=1)
            area = kernel[0] * kernel[1]
        present = random.sample(
            range(layer.numel // area), draw(st.integers(1, layer.numel // area))
        )
        positions = torch.tensor([b * area + i for b in sorted(present) for i in range(area)])
        values = torch.tensor([random.randint(-4, 4) / 4 for _ in positions])
        place(layer, positions, values)
        layers.append(layer)
    return Bundle(layers)


def blocks_of(layer, area) -> tuple[int, dict[int, float]]:
    """A layer as the oracles take it, with the mean |w| of a kernel for a weight."""
    sums: dict[int, float] = {}
    for position, (value, *_) in entries(layer).items():
        sums[position // area] = sums.get(position // area, 0.0) + abs(value)
    return layer.numel // area, {block: total / area for block, total in sums.items()}


def smallest(layers, areas, count):
    """The blocks below the first that would exceed `count` weights; of one size, exact."""
    entries = global_order(layers)
    if len(set(areas)) == 1:
        return entries[: count // areas[0]]
    every = sorted((v, areas[i]) for i, (_, values) in enumerate(layers) for v in values.values())
    total, smallest_kept = 0, float("inf")
    for value, area in every:
        total += area
        if total > count:
            smallest_kept = value
            break
    return [(i, b) for i, b in entries if layers[i][1][b] < smallest_kept]


@pytest.mark.parametrize("threshold", ["exact", "adaptive"])
@pytest.mark.parametrize("name", ["R", "M", "K"])
@QUICK
@given(st.one_of(kernel_bundles(), kernel_bundles([(2, 2)])), st.integers(1, 60), st.data())
def test_kernels_are_pruned_and_grown_together(threshold, name, bundle, count, data):
    nnz = sum(layer.nnz for layer in bundle.layers)
    count = min(count, nnz)
    optimizer = torch.optim.SGD(bundle.parameters(), lr=0.0, momentum=0.9)
    h = data.draw(st.sampled_from([0.25, 0.5, 0.8, 2.0]))
    rewirer = DSR(
        bundle,
        optimizer,
        granularity="kernel",
        threshold=threshold,
        every=1,
        prune_count=count,
        initial_threshold=h,
        allocation=name,
    )
    for iteration in range(2):
        bundle.backward(iteration)
        optimizer.step()
        before = [entries(layer, optimizer) for layer in bundle.layers]
        areas = [len(e[0]) for e in map(list_kernels, bundle.layers)]
        layers = [blocks_of(*pair) for pair in zip(bundle.layers, areas, strict=True)]
        capacity = sum(a * (n - len(v)) for a, (n, v) in zip(areas, layers, strict=True))
        carried, h = rewirer.carried_over, rewirer.threshold
        if threshold == "exact":
            pruned = smallest(layers, areas, min(count, max(0, capacity - carried)))
        else:
            below = [(i, b) for i, b in global_order(layers) if layers[i][1][b] < h]
            pruned = below
        weights_pruned = sum(areas[i] for i, _ in pruned)
        if len(pruned) > sum(n - len(v) for n, v in layers) or weights_pruned > capacity - carried:
            pruned = None  # too little capacity: see the other test
        report = rewirer.step()
        after = [entries(layer, optimizer) for layer in bundle.layers]
        assert sum(map(len, after)) + rewirer.carried_over == nnz
        assert rewirer.carried_over == report.pruned + carried - report.grown >= 0
        for i, (old, new, area) in enumerate(zip(before, after, areas, strict=True)):
            positions = list(new)
            starts = positions[::area]
            assert positions == [s + k for s in starts for k in range(area)]  # whole kernels
            assert all(s % area == 0 for s in starts)
            grown = report.layers[i].grown
            if pruned is not None:
                mine = {b * area + k for j, b in pruned if j == i for k in range(area)}
                assert_rewired(old, new, mine, grown)
            assert grown == layers[i][0] * area - len(old) or rewirer.carried_over < area
        if pruned is not None and threshold == "adaptive":
            prunable = sum(len(b) - a for b, a in zip(before, areas, strict=True))
            assert rewirer.threshold == next_threshold(h, weights_pruned, count, prunable)


def list_kernels(layer) -> list[range]:
    area = layer.numel // (layer.weight_shape[0] * layer.weight_shape[1])
    return [range(start, start + area) for start in range(0, layer.numel, area)]


def mixed(nnz=(9 * 8, 40)) -> nn.Sequential:
    torch.manual_seed(0)
    conv, linear = SparseConv2d(4, 8, 3), SparseLinear(8, 20, nnz=nnz[1])
    pattern = Topology.random_kernels(conv.weight_shape, nnz[0])
    place(conv, pattern.linear_positions(), torch.randn(nnz[0]))
    return nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def test_what_no_kernel_can_hold_is_carried_over():
    model = mixed((72, 160))  # the linear layer is full: what it loses can only become kernels
    arguments = {"granularity": "kernel", "prune_count": 10, "threshold": "exact"}
    rewirer = DSR(model, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)
    carried = []
    for _ in range(6):
        model[0].weight_values.data.fill_(9.0)
        rewirer.rewire()
        carried.append(rewirer.carried_over)
        assert model[0].nnz + model[3].nnz + rewirer.carried_over == 72 + 160
        assert model[0].nnz % 9 == 0
    assert carried[0] == 1 and max(carried) < 9 and model[0].nnz > 72
    resumed = DSR(model, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)
    rewirer.carried_over = 3
    resumed.load_state_dict(rewirer.state_dict())
    assert resumed.carried_over == 3


def test_a_target_of_everything_leaves_a_state_that_loads():
    model = mixed()
    arguments = {"granularity": "kernel", "prune_count": 112, "threshold": "exact"}
    rewirer = DSR(model, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)
    report = rewirer.rewire()
    assert report.pruned == 72 - 9 + 39 and report.threshold < 10
    rewirer.load_state_dict(rewirer.state_dict())


def test_patterns_that_are_not_whole_kernels_are_refused():
    model = nn.Sequential(SparseConv2d(4, 8, 3, nnz=72), SparseLinear(8, 20))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="layer '0': expected whole 3x3 kernels"):
        DSR(model, optimizer, granularity="kernel")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"allocation": "r"}, "allocation: unknown value 'r'; "),
        ({"power": 9}, r"power: expected a number in \[-8, 8\], got 9"),
        ({"power": float("nan")}, "power: expected"),
        ({"power": 2, "allocation": "M"}, "power: expected 1 unless allocation is 'R', got 2"),
        ({"granularity": "kernels"}, "granularity: unknown value 'kernels'; did you mean 'kernel'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    model = mixed()
    with pytest.raises(ValueError, match=message):
        DSR(model, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)
