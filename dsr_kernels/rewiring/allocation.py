"""How many of the non-zeros that a rewire took from the layers each of them gets back."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from dsr_kernels.distribution import share_out

# What a layer's share of the growth is in proportion to. A layer has N positions, M non-zeros
# before the rewire, K pruned by it, R = M - K survivors.
#   R     the paper's choice, to a power: R**p (p = 1 in the paper)
#   M, N  without regard to what was pruned, to size alone
#   K     each layer gets back what it lost, so the layers never trade
#   anti  1 / R: against the paper's preference for layers whose weights survive
ALLOCATIONS = ("R", "M", "N", "K", "anti")
MAX_POWER = 8  # of R: beyond it numbers overflow, and the largest layer takes all anyway


def growth_weights(
    allocation: str, power: float, nnz: Sequence[int], pruned: Sequence[int], sizes: Sequence[int]
) -> list[Fraction]:
    """What each layer's growth is in proportion to; 0 for a layer without survivors."""
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
    """`total` in proportion to `weights` and within `capacities`, in whole numbers.

    What the layers of positive weight cannot hold goes to the others in proportion to `survivors`.
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
    weights: Sequence[int | Fraction],
    survivors: Sequence[int],
    capacities: Sequence[int],
    blocks: Sequence[int],
) -> list[int]:
    """As `share_growth`, all in weights, where layer l grows in blocks of blocks[l] weights.

    Shares are rounded down to whole blocks; what is left then goes, block by block, to the layers
    that rounding took most from. Less than `total` is shared only where no more whole blocks fit:
    by less than the smallest block that there is room for.
    """
    shares = share_growth(total, weights, survivors, capacities)
    lost = [share % block for share, block in zip(shares, blocks, strict=True)]
    shares = [share - loss for share, loss in zip(shares, lost, strict=True)]
    left = total - sum(shares)
    order = sorted(range(len(shares)), key=lambda i: (-Fraction(lost[i], blocks[i]), i))
    for first in (True, False):  # a block for each whose share was cut, then whatever still fits
        for i in order:
            room = (capacities[i] - shares[i]) // blocks[i] if survivors[i] else 0
            count = min(room, left // blocks[i], int(lost[i] > 0) if first else left)
            shares[i] += count * blocks[i]
            left -= count * blocks[i]
    return shares
