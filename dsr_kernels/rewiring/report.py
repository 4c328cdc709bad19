"""What one rewire did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from dsr_kernels.rewiring.layers import SparseLayer
from dsr_kernels.rewiring.plan import RewirePlan
from dsr_kernels.rewiring.schedule import as_int, as_number


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

    Attributes:
        step: finished iterations.
        threshold: the magnitude used. Adaptive: all below it was pruned; exact: the largest pruned.
        next_threshold: the magnitude that the next rewire will use.
        pruned: of all layers.
        grown: of all layers.
        layers: what each layer lost and gained.
        seconds: wall time.
    """

    step: int
    threshold: float
    next_threshold: float
    pruned: int
    grown: int
    layers: list[LayerReport]
    seconds: float

    @classmethod
    def from_dict(cls, found: Any, names: Mapping[str, str]) -> RewireReport:
        """What dataclasses.asdict has made of a report, with layers renamed.

        Raises ValueError for what cannot have been one.
        """
        known = {each.name for each in fields(cls)}
        if not isinstance(found, dict) or set(found) != known:
            raise ValueError(f"report: expected the keys {sorted(known)}, got {found!r}")
        for key in known - {"layers"}:
            as_number(found[key], f"report: {key}")
        if not isinstance(found["layers"], list):
            raise ValueError(f"report: layers: expected a list, got {found['layers']!r}")
        layers = []
        for row in found["layers"]:
            own = {each.name for each in fields(LayerReport)}
            if not isinstance(row, dict) or set(row) != own or not isinstance(row["name"], str):
                raise ValueError(f"report: layers: expected the keys {sorted(own)}, got {row!r}")
            for key in own - {"name"}:
                as_int(row[key], f"report: layers: {key}", 0)
            layers.append(LayerReport(**{**row, "name": names.get(row["name"], row["name"])}))
        return cls(**{**found, "layers": layers})

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

    def then(self, later: RewireReport) -> RewireReport:
        """Both as one. A layer may have been frozen or thawed in between."""
        rows = {row.name: row for row in self.layers}
        for b in later.layers:
            a = rows.get(b.name, LayerReport(b.name, b.nnz_before, 0, 0, 0))
            rows[b.name] = LayerReport(
                b.name, a.nnz_before, a.pruned + b.pruned, a.grown + b.grown, b.nnz_after
            )
        return replace(
            later,
            pruned=self.pruned + later.pruned,
            grown=self.grown + later.grown,
            layers=list(rows.values()),
            seconds=self.seconds + later.seconds,
        )


def make_report(
    step: int,
    plan: RewirePlan,
    layers: list[SparseLayer],
    threshold: float,
    next_threshold: float,
) -> RewireReport:
    """That of a rewire that has been planned and not made."""
    rows = [
        LayerReport(layer.name, layer.weight_values.numel(), *(layer.block * n for n in counts))
        for layer, *counts in zip(layers, plan.pruned, plan.grown, plan.nnz_after, strict=True)
    ]
    return RewireReport(
        step=step,
        threshold=threshold,
        next_threshold=next_threshold,
        pruned=sum(row.pruned for row in rows),
        grown=sum(row.grown for row in rows),
        layers=rows,
        seconds=0.0,
    )
