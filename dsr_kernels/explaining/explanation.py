"""What explain gives: the passes of sparse layers, what they cost beside dense, and two tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsr_kernels import text_table
from dsr_kernels.backends.processor import dense_bf16_by

HEADER = (
    *("layer", "pass", "input", "nnz", "sparsity", "variant"),
    *("GF/s", "held", "plan", "workspace", "why"),
)
ALONE = "(model)"  # what stands for the name of a layer that is the model itself
COSTS = ("layer", "input", "fp32 ms", "bf16 ms", "dense fp32 ms", "dense bf16 ms", "faster")


@dataclass(frozen=True)
class LayerPass:
    """One pass of one sparse layer. Sizes in bytes; the workspace is freed after each call."""

    layer: str
    operation: str  # "forward" (grad-weight shares its plan) or "grad_input"
    input_shape: tuple[int, ...]  # [N, C, H, W]; a sequence's H is 1, a linear layer's H and W are
    nnz: int
    sparsity: float
    lanes: str  # what fills a vector: "plane", "row" or "batch"; "none": the bias alone
    tile: tuple[int, int]  # rows x columns of vectors
    channel_blocks: int
    variant: str
    reason: str
    expected_gflops: float  # useful ones, by the cost model
    over_dense: float  # expected times as fast as dense float32 at the peak; inf: nothing to do
    values_bytes: int
    index_bytes: int
    plan_bytes: int
    workspace_bytes: int  # of "forward": the larger of forward's and grad-weight's


@dataclass(frozen=True)
class LayerCost:
    """Milliseconds of forward and backward of a layer on one input, and of its dense twin."""

    layer: str
    input_shape: tuple[int, ...]  # as the layer gets it
    ours: float
    ours_bf16: float | None  # under bfloat16 autocast; None: not measured
    dense: float
    dense_bf16: float | None  # None: not measured, or oneDNN does not take it here
    compared_in: str  # "fp32" or "bf16": what explain was called in, and what decides

    @property
    def pair(self) -> tuple[float, float]:
        """(ours, dense) in the precision that decides, as far as it is known."""
        if self.compared_in == "bf16" and self.dense_bf16 is not None:
            return (self.ours if self.ours_bf16 is None else self.ours_bf16), self.dense_bf16
        return self.ours, self.dense


@dataclass(frozen=True)
class Explanation:
    """The passes of a model's sparse layers in the order they run; print it for two tables."""

    rows: list[LayerPass]
    unused: list[str]  # sparse layers that the model did not call
    isa: str
    threads: int
    peak_gflops: float  # measured: float32 multiply-adds from registers
    costs: list[LayerCost]  # one for each layer and input
    measured: bool  # whether costs were measured; else they are the cost model's

    @property
    def totals(self) -> tuple[float, float]:
        """Milliseconds (of the sparse layers, of their dense twins) in the precision compared in.

        What else a training step does is not in it.
        """
        pairs = [cost.pair for cost in self.costs]
        return sum(ours for ours, _ in pairs), sum(dense for _, dense in pairs)

    @property
    def leave_dense(self) -> list[str]:
        """The layers that would be faster dense, over all their inputs: names for `exclude`.

        A layer that is the model itself has none, and is not among them.
        """
        lost: dict[str, float] = {}
        for cost in self.costs:
            ours, dense = cost.pair
            lost[cost.layer] = lost.get(cost.layer, 0.0) + ours - dense
        return [name for name, more in lost.items() if more > 0 and name != ALONE]

    def __str__(self) -> str:
        table: list[tuple[str, ...]] = [HEADER]
        table += [_cells(row) for row in self.rows]
        lines = text_table.columns(table, left=(0, 1, 2, 5, 10), rules=(1,))
        lines += [f"{name}: not called" for name in self.unused]
        lines.append(
            f"{self.isa}, {self.threads} threads, peak {self.peak_gflops:.0f} GF/s; GF/s are the "
            "cost model's, of multiply-adds at non-zeros; grad-weight runs on forward's plan"
        )
        return "\n".join([*lines, *self._about_dense(), *self._about_costs()])

    def _about_dense(self) -> Iterator[str]:
        """Where dense would probably be faster: known for float32, a warning for bfloat16.

        A dense pass rarely reaches the peak, so in float32 this errs on the side of dense.
        """
        slower = [f"{row.layer} ({row.operation})" for row in self.rows if row.over_dense < 1]
        named = ", ".join(slower) or "no pass"
        yield f"dense float32, if it reached that peak, would be faster in: {named}"
        by = dense_bf16_by()
        if by in ("AMX", "AVX512-BF16"):
            yield (
                f"dense under bfloat16 autocast runs by {by} here, which that peak does not count, "
                "and may be faster in more passes; `dsr bench` times a layer against both"
            )

    def _about_costs(self) -> Iterator[str]:
        """The second table, and what follows from it."""
        ours, dense = self.totals
        cells = [COSTS, *map(_cost_cells, self.costs)]
        compared = self.costs[0].compared_in if self.costs else "fp32"
        yield ""
        yield from text_table.columns(cells, left=(0, 1, 6), rules=(1,))
        how = "measured" if self.measured else "by the cost model, dense at its peak"
        yield (
            f"forward and backward of these layers, {how}: {ours:.2f} ms, dense {compared} "
            f"{dense:.2f} ms; what else a step does is not in it"
        )
        if self.leave_dense:
            yield (
                f"faster dense: sparsify(..., exclude={self.leave_dense}); where='faster' asks the "
                "cost model itself"
            )


def _cells(row: LayerPass) -> tuple[str, ...]:
    held = row.values_bytes + row.index_bytes
    return (
        row.layer,
        row.operation,
        "x".join(map(str, row.input_shape)),
        f"{row.nnz:,}",
        f"{row.sparsity:.3f}",
        row.variant,
        f"{row.expected_gflops:.0f}",
        *(f"{size / 1024:,.0f} KiB" for size in (held, row.plan_bytes, row.workspace_bytes)),
        row.reason,
    )


def _cost_cells(cost: LayerCost) -> tuple[str, ...]:
    ours, dense = cost.pair
    times = (cost.ours, cost.ours_bf16, cost.dense, cost.dense_bf16)
    return (
        cost.layer,
        "x".join(map(str, cost.input_shape)),
        *("-" if time is None else f"{time:.3f}" for time in times),
        "sparse" if ours <= dense else "dense",
    )
