"""SNFS, sparse networks from scratch (Dettmers & Zettlemoyer, arXiv 1907.04840)."""

from __future__ import annotations

import math
from fractions import Fraction

from torch import Tensor

from dsr_kernels.rewiring.allocation import share_in_blocks
from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.methods.layerwise import LayerwiseRewirer
from dsr_kernels.rewiring.plan import RewirePlan

BITS = 62  # of the sum of a layer's momenta, as an integer
LEAST_EXPONENT = -900  # of the largest momentum: float64 must hold 2**(BITS - it)
MOMENTA = ("momentum_buffer", "exp_avg")  # SGD's and Adam's


class SNFS(LayerwiseRewirer):
    """Each layer loses its smallest weights; layers gain in proportion to their mean momentum.

    The mean is that of the momentum's magnitude, at a layer's non-zeros. Arguments are those of
    `LayerwiseRewirer`; the fraction falls along a cosine. There is a departure from the paper,
    which keeps the momentum of absent weights: here weights grow where this iteration's gradient is
    largest, so that nothing is ever dense.

    Raises what `LayerwiseRewirer` raises, and ValueError for an optimizer without momentum. A
    rewire raises ValueError where momentum is not finite, or has another name in the state than
    SGD's or Adam's.
    """

    FRACTION_SCHEDULE = "cosine"
    GROWTH = "gradient"

    def _check_trains(self) -> None:
        super()._check_trains()
        classes = {kind.__name__ for one in self._optimizers.all for kind in type(one).__mro__}
        if "ZeroRedundancyOptimizer" in classes:
            raise ValueError(
                "optimizer: SNFS shares growth out by momentum, of which ZeroRedundancyOptimizer "
                "leaves each process a part; use an optimizer that keeps all of it, or RigL"
            )
        groups = self._optimizers.groups_of([x.weight_values for x in self._live_layers()])
        known = all("momentum" in group or "betas" in group for group in groups)
        if not known or any(group.get("momentum", 1) == 0 for group in groups):
            kinds = ", ".join(type(one).__name__ for one in self._optimizers.given)
            raise ValueError(
                "optimizer: SNFS shares growth out by momentum: expected one with momentum (SGD's "
                f"above 0, Adam, AdamW), got {kinds} without"
            )

    def _prune(self, plan: RewirePlan, layers: list[SparseLayer]) -> tuple[float, float]:
        for layer in layers:  # not in `_grown_counts`: a backward pass may be calling that
            self._check_momentum(layer)
            if self._mean_momentum(layer) is None:
                raise ValueError(f"optimizer: the momentum of layer {layer.name!r} is not finite")
        return super()._prune(plan, layers)

    def _deciding_state(self, layer: SparseLayer) -> list[Tensor]:
        return [] if (momentum := self._momentum(layer)) is None else [momentum]

    def _grown_counts(self, layers: list[SparseLayer], pruned: list[int]) -> list[int]:
        weights = [self._mean_momentum(layer) or Fraction(0) for layer in layers]
        blocks = [layer.block for layer in layers]
        lost = [count * block for count, block in zip(pruned, blocks, strict=True)]
        survivors = [
            layer.weight_values.numel() - count for layer, count in zip(layers, lost, strict=True)
        ]
        capacities = [layer.free_entries * layer.block for layer in layers]
        if not any(weights):  # before the first step
            weights = [Fraction(count) for count in lost]
        grown = share_in_blocks(sum(lost), weights, survivors, capacities, blocks)
        if sum(grown) < sum(lost):  # what no free block can hold
            return pruned
        return [count // block for count, block in zip(grown, blocks, strict=True)]

    def _check_momentum(self, layer: SparseLayer) -> None:
        """Raises ValueError where there is state of the layer, and no momentum among it."""
        states = list(self._optimizers.remembered_of(layer.weight_values))
        keys = {
            key: value
            for state in states
            for key, value in state.items()
            if isinstance(key, str) and isinstance(value, Tensor) and value.dim()
        }
        if keys and not any(key in keys for key in MOMENTA):
            raise ValueError(
                f"optimizer: SNFS knows momentum as {' or '.join(MOMENTA)}, expected one of these "
                f"in the state of layer {layer.name!r}, got {', '.join(keys)}; use another "
                "optimizer or method"
            )

    def _mean_momentum(self, layer: SparseLayer) -> Fraction | None:
        """None where it is not finite."""
        momentum = self._momentum(layer)
        return Fraction(0) if momentum is None else exact_mean(momentum.detach().double().abs())

    def _momentum(self, layer: SparseLayer) -> Tensor | None:
        for state in self._optimizers.remembered_of(layer.weight_values):
            for key in MOMENTA:
                if isinstance(momentum := state.get(key), Tensor) and momentum.numel():
                    return momentum
        return None


def exact_mean(magnitudes: Tensor) -> Fraction | None:
    """The mean of numbers of at least 0, float64, the same on any number of threads and on any
    device: integers are added, in which the largest number has BITS less those of the count. None
    where a number is not finite.
    """
    count, largest = magnitudes.numel(), magnitudes.max().item()
    if not math.isfinite(largest):
        return None
    exponent = max(math.frexp(largest)[1], LEAST_EXPONENT)
    bits = BITS - count.bit_length() - exponent
    total = int((magnitudes * 2.0**bits).long().sum().item())
    return Fraction(total, count) / Fraction(2) ** bits
