"""How many non-zeros grow in each layer."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from dsr_kernels.distribution import share_out

# What a layer's share of the growth is in proportion to. A layer has N positions, M non-zeros
# before the rewire, K pruned ones and R = M - K survivors.
#   R     the paper's choice; more generally R**p (p = 1 in the paper)
#   M, N  size alone, whatever was pruned
#   K     each layer grows what it lost, so layers never trade non-zeros
#   anti  1 / R, against the paper's preference for layers whose weights survive
ALLOCATIONS = ("R", "M", "N", "K", "anti")
MAX_POWER = 8  # of R. Beyond it numbers overflow, and the largest layer gets all anyway.


def growth_weights(
    allocation: str, power: float, nnz: Sequence[int], pruned: Sequence[int], sizes: Sequence[int]
) -> list[Fraction]:
    """What each layer's growth is in proportion to: 0 for a layer without survivors.

    nnz, pruned, sizes: M, K and N of each layer.
    """
    survivors = [m - k for m, k in zip(nnz, pruned, strict=True)]
    values: dict[str, Sequence] = {
        "R": [_power(r, power) for r in survivors],
        "M": nnz,
        "N": sizes,
        "K": pruned,
        "anti": [Fraction(1, r) if r else 0 for r in survivors],
    }
    chosen = values[allocation]
    return [Fraction(v) if r else Fraction(0) for v, r in zip(chosen, survivors, strict=True)]


def _power(base: int, power: float) -> Fraction:
    if not base:
        return Fraction(0)
    return Fraction(base) ** int(power) if power == int(power) else Fraction(base**power)


def share_growth(
    total: int, weights: Sequence[Fraction], survivors: Sequence[int], capacities: Sequence[int]
) -> list[int]:
    """Shares out `total` in proportion to `weights`, within `capacities`, in whole numbers.

    What the layers of positive weight cannot hold is shared in proportion to `survivors`.
    """
    shares = share_out(total, weights, capacities)
    left = total - sum(shares)
    if left:
        rest = [c - s for c, s in zip(capacities, shares, strict=True)]
        more = share_out(left, survivors, rest)
        shares = [a + b for a, b in zip(shares, more, strict=True)]
    return shares


def share_in_blocks(
    total: int,
    weights: Sequence[Fraction],
    survivors: Sequence[int],
    capacities: Sequence[int],
    blocks: Sequence[int],
) -> list[int]:
    """As `share_growth`, where layer l grows in blocks of blocks[l] weights. All numbers but
    `blocks` count weights, and the shares are whole blocks.

    Of one size, blocks are shared out as single weights are. Of several, shares are rounded down to
    whole blocks. What is left is then shared, block by block, in the order of what rounding took
    from the layers. Less than `total` is shared where no more whole blocks fit; then the rest is
    smaller than the smallest block for which there is capacity.
    """
    if len(set(blocks)) == 1:
        size = blocks[0]
        counted = ([n // size for n in numbers] for numbers in (survivors, capacities))
        return [size * n for n in share_growth(total // size, weights, *counted)]
    shares = share_growth(total, weights, survivors, capacities)
    lost = [share % block for share, block in zip(shares, blocks, strict=True)]
    shares = [share - loss for share, loss in zip(shares, lost, strict=True)]
    left = total - sum(shares)
    order = sorted(range(len(shares)), key=lambda i: (-Fraction(lost[i], blocks[i]), i))
    for first in (True, False):  # one block for each rounded share, then whatever still fits
        for i in order:
            capacity = (capacities[i] - shares[i]) // blocks[i] if survivors[i] else 0
            count = min(capacity, left // blocks[i], int(lost[i] > 0) if first else left)
            shares[i] += count * blocks[i]
            left -= count * blocks[i]
    return shares


def even_trade(
    pruned: Sequence[int], grown: Sequence[int], blocks: Sequence[int]
) -> tuple[list[int], list[int]]:
    """(pruned, grown) blocks of each layer, as given if as many weights grow as are pruned.

    Otherwise layers do not trade: blocks of several sizes need not add up to any number.
    """
    lost = sum(count * block for count, block in zip(pruned, blocks, strict=True))
    gained = sum(count * block for count, block in zip(grown, blocks, strict=True))
    if lost == gained:
        return list(pruned), list(grown)
    least = [min(pair) for pair in zip(pruned, grown, strict=True)]
    return least, list(least)
