"""What one rewire means, in slow and readable Python: documentation and test oracle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dsr_kernels.distribution import share_out


@dataclass
class Layer:
    """A sparse weight as a dictionary: position -> (value, momentum, ...)."""

    numel: int
    entries: dict[int, tuple[float, ...]]
    pruned: int = field(default=0)
    grown: int = field(default=0)


def rewire(
    layers: Sequence[Layer],
    ranks: Callable[[int, int, int], Sequence[int]],
    *,
    threshold: float | None = None,
    count: int | None = None,
    counts: Sequence[int] | None = None,
    grown: Sequence[int] | None = None,
) -> list[Layer]:
    """One rewire. Exactly one of `threshold`, `count` and `counts` says what is pruned: all |w|
    below the threshold, the `count` smallest of all layers, or the counts[l] smallest of layer l.

    grown: how many grow in each layer. None: as many as are pruned, shared out in proportion to
    the survivors; not with `counts`.
    ranks: `ranks(layer, free, grown)` chooses `grown` distinct numbers below `free`: which of the
    layer's free positions, in ascending order, grow.
    """
    # Smallest first. Of equal magnitudes the later layer is first, in a layer the later position.
    # The largest entry of each layer is never pruned, so no layer is ever emptied.
    largest = [max(layer.entries, key=_strength(layer), default=None) for layer in layers]
    order = sorted(
        (abs(entry[0]), -index, -position)
        for index, layer in enumerate(layers)
        for position, entry in layer.entries.items()
        if position != largest[index]
    )
    most = count or 0
    if threshold is not None:
        most = sum(magnitude < threshold for magnitude, _, _ in order)

    # What is pruned does not grow again at once: only positions that were free before can grow.
    # Where these are few, less is pruned: a weight stays if none can grow in its place.
    capacities = [layer.numel - len(layer.entries) if layer.entries else 0 for layer in layers]
    if grown is None:
        most = min(most, len(order), sum(capacities))
    if counts is not None:
        by_layer = [[entry for entry in order if entry[1] == -i] for i in range(len(layers))]
        chosen = [entry for of, n in zip(by_layer, counts, strict=True) for entry in of[:n]]
    else:
        chosen = order[:most]
    pruned = {(-index, -position) for _, index, position in chosen}

    survivors = [
        {p: entry for p, entry in layer.entries.items() if (index, p) not in pruned}
        for index, layer in enumerate(layers)
    ]
    if grown is None:
        grown = share_out(most, [len(s) for s in survivors], capacities)

    after = []
    for index, (layer, kept, new_ones) in enumerate(zip(layers, survivors, grown, strict=True)):
        free = [p for p in range(layer.numel) if p not in layer.entries]
        entry_size = max(map(len, layer.entries.values()), default=0)
        new = {free[rank]: (0.0,) * entry_size for rank in ranks(index, len(free), new_ones)}
        entries = dict(sorted((kept | new).items()))
        after.append(Layer(layer.numel, entries, len(layer.entries) - len(kept), new_ones))
    return after


def _strength(layer: Layer) -> Callable[[int], tuple[float, int]]:
    return lambda position: (abs(layer.entries[position][0]), -position)
