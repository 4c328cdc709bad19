"""How many non-zeros each layer gets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from numbers import Real

from dsr_kernels.choices import check_choice
from dsr_kernels.topology import check_nnz, check_shape

DISTRIBUTIONS = ("uniform", "er", "erk")


def exact_fraction(value: float, name: str = "sparsity") -> Fraction:
    """The decimal number the caller wrote: 0.9 is 9/10, not the binary number just above it."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}: expected a number in [0, 1), got {value!r}")
    if not 0 <= value < 1:
        hint = f"; did you mean {value / 100:g}?" if 1 < value < 100 else ""
        raise ValueError(f"{name}: expected a number in [0, 1), got {value}{hint}")
    return value if isinstance(value, Fraction) else Fraction(str(value))


def budget(numel: int, sparsity: float, block_size: int = 1) -> int:
    """floor((1 - sparsity) * numel), and at least 1: how many non-zeros `numel` weights get.

    Of blocks as many as that holds, and at least one.
    """
    nnz = math.floor((1 - exact_fraction(sparsity)) * numel)
    return max(block_size, nnz - nnz % block_size)


def share_out(
    total: int, weights: Sequence[int | Fraction], capacities: Sequence[int]
) -> list[int]:
    """Shares out `total` in proportion to `weights`, in whole numbers, within `capacities`.

    A party whose part would reach its capacity gets its capacity. The same rule then shares what
    is left among the others. Parts are rounded down. The units left over go to the largest
    remainders, and to the first of equal ones. A party of weight 0 gets nothing. The shares add up
    to `total`, or to less where the capacities are too small. Arithmetic is exact.

    csrc/common/share_out.h is its twin in C++.
    """
    shares = [0] * len(weights)
    rest = [i for i, weight in enumerate(weights) if weight > 0]
    mass = sum(weights[i] for i in rest)
    while full := [i for i in rest if total * weights[i] >= capacities[i] * mass]:
        for i in full:
            shares[i] = capacities[i]
            total -= capacities[i]
        rest = [i for i in rest if i not in set(full)]
        mass = sum(weights[i] for i in rest)
    parts = {i: Fraction(total * weights[i], mass) for i in rest}
    for i, part in parts.items():
        shares[i] = int(part)
        total -= shares[i]
    for i in sorted(rest, key=lambda i: (shares[i] - parts[i], i))[:total]:
        shares[i] += 1
    return shares


def apportion(total: int, weights: Sequence[int], capacities: Sequence[int]) -> list[int]:
    """As `share_out`, with at least 1 for each layer: one left with none takes it from the largest.

    `weights` are above 0. Raises ValueError for a total that cannot be met exactly.
    """
    least, most = len(capacities), sum(capacities)
    if not least <= total <= most:
        raise ValueError(
            f"sparsity: {total} non-zeros cannot be shared by {least} layers that hold from 1 each "
            f"to all of their {most} weights together; reachable: {reachable(least, most, most)}"
        )
    shares = share_out(total, weights, capacities)
    for i in range(len(shares)):
        if not shares[i]:
            shares[shares.index(max(shares))] -= 1
            shares[i] = 1
    return shares


def _share_weights(shape: tuple[int, ...], distribution: str) -> int:
    """What a layer's number of non-zeros is proportional to, before capacities.

    Erdos-Renyi (Mocanu et al. 2018): density ~ (n_in + n_out) / (n_in * n_out). With the kernel,
    ERK (Evci et al. 2020, section 3): ~ (n_in + n_out + kh + kw) / (n_in * n_out * kh * kw).
    """
    if distribution == "er":
        return (shape[0] + shape[1]) * math.prod(shape[2:])
    return sum(shape)


def distribute(shapes: Sequence[tuple[int, ...]], total: int, distribution: str) -> list[int]:
    """Exactly `total` non-zeros shared out by `distribution`; uniform: in proportion to size."""
    check_choice(distribution, "distribution", DISTRIBUTIONS)
    sizes = [math.prod(shape) for shape in shapes]
    if distribution == "uniform":
        return apportion(total, sizes, sizes)
    return apportion(total, [_share_weights(shape, distribution) for shape in shapes], sizes)


def whole_blocks(
    counts: Sequence[int], sizes: Sequence[int], block_sizes: Sequence[int]
) -> list[int]:
    """The `counts` of layers of `sizes` weights in whole blocks, at least one in each layer.

    They are rounded down. What that leaves goes to the largest remainders, block by block, as far
    as a block fits: together they are at most sum(counts), short of it by less than a block of
    every layer that has room. Raises ValueError where they are too few for a block in each layer.
    """
    least, most = sum(block_sizes), sum(sizes)
    if sum(counts) < least:
        raise ValueError(
            f"sparsity: {sum(counts)} non-zeros are too few for {len(sizes)} layers that hold at "
            f"least a block each, {least} weights together; reachable: "
            f"{reachable(least, most, most)}"
        )
    triples = list(zip(counts, sizes, block_sizes, strict=True))
    shares = [max(block, count - count % block) for count, _, block in triples]
    left = sum(counts) - sum(shares)
    while left < 0:
        spare = [s if s > b else 0 for s, b in zip(shares, block_sizes, strict=True)]
        i = spare.index(max(spare))
        shares[i] -= block_sizes[i]
        left += block_sizes[i]
    order = sorted(range(len(shares)), key=lambda i: (shares[i] - counts[i], i))
    for most in (1, left):  # a block for each remainder, then whatever still fits
        for i in order:
            _, size, block = triples[i]
            count = min(most, max(left, 0) // block, (size - shares[i]) // block)
            shares[i] += count * block
            left -= count * block
    return shares


def layer_nnz(
    shapes: Sequence[Sequence[int]],
    sparsity: float,
    distribution: str = "uniform",
    fixed: Mapping[int, int] | None = None,
    block_sizes: Sequence[int] | None = None,
) -> list[int]:
    """How many non-zeros each weight of `shapes` gets.

    uniform: floor((1 - sparsity) * N_l) in each layer, as in the paper. er, erk: together exactly
    floor((1 - sparsity) * sum N_l), shared out by Erdos-Renyi densities; a layer that would need a
    density above 1 becomes dense and the others share the rest. Layers in `fixed` (index -> nnz)
    stand outside: neither their weights nor their non-zeros enter the budget of the others. With
    `block_sizes` (one for each weight) all of it is rounded to whole blocks, see `whole_blocks`.
    """
    check_choice(distribution, "distribution", DISTRIBUTIONS)
    checked = [check_shape(shape) for shape in shapes]
    blocks = [1] * len(checked) if block_sizes is None else list(block_sizes)
    fixed = dict(fixed or {})
    for index, nnz in fixed.items():
        check_nnz(checked[index], nnz, blocks[index])
    free = [i for i in range(len(checked)) if i not in fixed]
    sizes = [math.prod(checked[i]) for i in free]
    if distribution == "uniform":
        counts = [budget(size, sparsity, blocks[i]) for i, size in zip(free, sizes, strict=True)]
    elif free:
        shared_shapes = [checked[i] for i in free]
        counts = distribute(shared_shapes, budget(sum(sizes), sparsity), distribution)
        counts = whole_blocks(counts, sizes, [blocks[i] for i in free])
    else:
        counts = []
    shared = dict(zip(free, counts, strict=True))
    return [fixed[i] if i in fixed else shared[i] for i in range(len(checked))]


def reachable(least: int, most: int, size: int) -> str:
    """The sparsities that leave between `least` and `most` of `size` weights, in words."""
    low = _decimals(Fraction(size - most, size), up=True)
    high = _decimals(Fraction(size - least, size), up=False)
    return f"a sparsity from {low} to {high}"


def _decimals(value: Fraction, up: bool) -> str:
    """Six digits after the point, rounded into the range that it ends."""
    scaled = value * 10**6
    return f"{(math.ceil(scaled) if up else math.floor(scaled)) / 10**6:g}"


def check_uniform(
    sizes: Mapping[str, int], sparsity: float, block_sizes: Mapping[str, int] | None = None
) -> None:
    """Raises ValueError if floor((1 - sparsity) N_l) is not a block for a layer (name -> N_l)."""
    blocks = dict.fromkeys(sizes, 1) if block_sizes is None else block_sizes
    tightest = min(sizes, key=lambda name: Fraction(sizes[name], blocks[name]))
    size, block = sizes[tightest], blocks[tightest]
    if (1 - exact_fraction(sparsity)) * size >= block:
        return
    total, least = sum(sizes.values()), sum(blocks.values())
    lacks = "none" if block == 1 else f"less than a block of {block}"
    raise ValueError(
        f"sparsity: {sparsity} leaves layer {tightest!r} {lacks} of its {size} weights; reachable: "
        f"{reachable(block, size, size)}, with distribution 'er' or 'erk' "
        f"{reachable(least, total, total)}"
    )
