"""What one rewire did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerReport:
    """One layer's part of a rewire; nnz_after = nnz_before - pruned + grown."""

    name: str
    nnz_before: int
    pruned: int
    grown: int
    nnz_after: int


@dataclass(frozen=True)
class RewireReport:
    """One rewire. All numbers count weights.

    `pruned == grown`, with two exceptions: GMP grows nothing, and DSR with kernels of several sizes
    carries a remainder over.

    step: finished iterations.
    threshold: the magnitude used. Adaptive: all below it was pruned; exact: the largest pruned.
    next_threshold: the magnitude that the next rewire will use.
    seconds: wall time.
    """

    step: int
    threshold: float
    next_threshold: float
    pruned: int
    grown: int
    layers: list[LayerReport]
    seconds: float

    def __str__(self) -> str:
        total = sum(layer.nnz_after for layer in self.layers)
        head = (
            f"rewire at iteration {self.step}: {self.pruned} of {total} non-zeros moved, "
            f"threshold {self.threshold:.3g} -> {self.next_threshold:.3g}, "
            f"{1e3 * self.seconds:.1f} ms"
        )
        rows = [
            f"  {layer.name}: {layer.nnz_before} - {layer.pruned} + {layer.grown} "
            f"= {layer.nnz_after}"
            for layer in self.layers
        ]
        return "\n".join([head, *rows])
