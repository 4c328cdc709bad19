"""What each rewiring method must do, in slow NumPy and exact fractions: test oracles.

A layer is (numel, {position: value}). Oracles say which positions are pruned and how
many, or which, grow. A layer's largest weight, of equal ones the first, is never pruned.
"""

from __future__ import annotations

from fractions import Fraction
from math import cos, floor, pi

import numpy as np

Layer = tuple[int, dict[int, float]]


def order(values: dict[int, float]) -> list[int]:
    """What may be pruned in a layer, in that order: the smallest first, of equal ones the last."""
    if not values:
        return []
    largest = max(values, key=lambda p: (abs(values[p]), -p))
    return sorted(set(values) - {largest}, key=lambda p: (abs(values[p]), -p))


def global_order(layers: list[Layer]) -> list[tuple[int, int]]:
    """(layer, position) over all layers: the smallest first, of equal ones the last layer's."""
    entries = [(i, p) for i, (_, values) in enumerate(layers) for p in order(values)]
    return sorted(entries, key=lambda e: (abs(layers[e[0]][1][e[1]]), -e[0], -e[1]))


def free_positions(layer: Layer) -> int:
    """Where a layer may grow; an empty one has no survivors and so no share."""
    return layer[0] - len(layer[1]) if layer[1] else 0


def set_counts(layers: list[Layer], fraction: float) -> list[int]:
    return [
        max(0, min(round(fraction * len(values)), len(values) - 1, numel - len(values)))
        for numel, values in layers
    ]


def best_free(layer: Layer, gradient: np.ndarray, count: int) -> set[int]:
    """RigL's choice: the free positions of largest |gradient|, of equal ones the first."""
    free = [p for p in range(layer[0]) if p not in layer[1]]
    magnitude = np.abs(gradient.reshape(-1))
    return set(sorted(free, key=lambda p: (-magnitude[p], p))[:count])


def cosine(start: float, step: int, length: int) -> float:
    return start * (1 + cos(pi * step / length)) / 2


def share_out(total: int, weights: list, capacities: list[int]) -> list[int]:
    """As much water as `total` into vessels of width `weight` and volume `capacity`: one level."""
    rest = [i for i, w in enumerate(weights) if w > 0]
    shares = [0] * len(weights)
    for i in sorted(rest, key=lambda i: Fraction(capacities[i]) / Fraction(weights[i])):
        if Fraction(total) * Fraction(weights[i]) >= capacities[i] * sum(
            Fraction(weights[j]) for j in rest
        ):
            shares[i] = capacities[i]
            total -= capacities[i]
            rest.remove(i)
    mass = sum(Fraction(weights[i]) for i in rest)
    parts = {i: total * Fraction(weights[i]) / mass for i in rest}
    for i in rest:
        shares[i] = floor(parts[i])
    left = total - sum(shares[i] for i in rest) if rest else 0
    for i in sorted(rest, key=lambda i: (floor(parts[i]) - parts[i], i))[:left]:
        shares[i] += 1
    return shares


def share_growth(
    total: int, weights: list, survivors: list[int], capacities: list[int]
) -> list[int]:
    """What the layers of positive weight cannot hold grows where weights survive."""
    shares = share_out(total, weights, capacities)
    rest = share_out(
        total - sum(shares), survivors, [r - s for r, s in zip(capacities, shares, strict=True)]
    )
    return [a + b for a, b in zip(shares, rest, strict=True)]


def snfs_counts(layers: list[Layer], fraction: float, momenta: list[list[float]]):
    """(pruned, grown): growth in proportion to the mean |momentum|, where there is any."""
    pruned = set_counts(layers, fraction)
    weights = [
        sum(Fraction(abs(float(x))) for x in np.ravel(m)) / np.size(m) if len(m) else 0
        for m in momenta
    ]
    if not any(weights):
        weights = pruned
    survivors = [len(values) - k for (_, values), k in zip(layers, pruned, strict=True)]
    capacities = [numel - len(values) for numel, values in layers]
    return pruned, share_growth(sum(pruned), weights, survivors, capacities)


def dsr_pruned(layers: list[Layer], threshold: float | None, count: int | None):
    """[(layer, position)] below the threshold, or the `count` smallest; no more than can grow."""
    entries = global_order(layers)
    if count is None:
        count = sum(abs(layers[i][1][p]) < threshold for i, p in entries)
    return entries[: min(count, sum(map(free_positions, layers)))]


def dsr_growth(layers: list[Layer], pruned: list[int], allocation: str, power: float) -> list[int]:
    survivors = [len(values) - k for (_, values), k in zip(layers, pruned, strict=True)]
    weigh = {
        "R": lambda i: Fraction(survivors[i]) ** power,
        "M": lambda i: len(layers[i][1]),
        "N": lambda i: layers[i][0],
        "K": lambda i: pruned[i],
        "anti": lambda i: Fraction(1, survivors[i]),
    }[allocation]
    weights = [weigh(i) if survivors[i] else 0 for i in range(len(layers))]
    return share_growth(
        sum(pruned), weights, survivors, [free_positions(layer) for layer in layers]
    )


def next_threshold(threshold: float, below: int, target: int, prunable: int) -> float:
    """The paper's rule with delta = 0.1; H stays where doubling it would prune no more."""
    if below < 0.9 * target:
        return threshold if below == prunable else 2 * threshold
    return threshold / 2 if below > 1.1 * target else threshold


def gmp_count(first: int, last: int, begin: int, end: int, step: int, kind: str) -> int:
    """Non-zeros left after iteration `step`."""
    u = np.clip((step - begin) / (end - begin), 0, 1)
    if kind == "cubic":  # Zhu & Gupta, eq. 1, of the density
        return round(last + (first - last) * (1 - u) ** 3)
    return round(first ** (1 - u) * last**u)


def dense_gradient(x, grad, weight_shape, stride, sides, dilation, groups) -> np.ndarray:
    """[O, C // groups, KH, KW]: a convolution's weight gradient, tap by tap."""
    top, bottom, left, right = sides
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (rows, inputs, *kernel), (_, _, height, width) = weight_shape, grad.shape
    result = np.zeros(weight_shape, x.dtype)
    for o in range(rows):
        first = o * groups // rows * inputs
        for a, b in np.ndindex(*kernel):
            top, left = a * dilation[0], b * dilation[1]
            seen = x[:, first : first + inputs, top:, left:]
            seen = seen[:, :, :: stride[0], :: stride[1]][:, :, :height, :width]
            result[o, :, a, b] = np.einsum("nchw,nhw->c", seen, grad[:, o])
    return result
