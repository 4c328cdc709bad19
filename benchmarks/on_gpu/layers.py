"""Single layers: ours at several sparsities, in float32 and bfloat16, beside torch's dense ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dsr_kernels.bench.problem import DENSE, Layer, Problem, float32_as
from dsr_kernels.bench.rivals import short

from .timing import Clock

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PRECISIONS = {"fp32": ("fp32", "ieee"), "tf32": ("fp32", "tf32"), "bf16": ("bf16", "ieee")}
WORST_ERROR = {"fp32": 1e-4, "bf16": 8e-3}  # relative to the largest element
LAST_AT = 0.9  # the sparsity at which ours is timed in channels_last too


def records(
    layer: Layer,
    operations: Sequence[str],
    sparsities: Sequence[float],
    clock: Clock,
    machine: dict,
) -> Iterator[dict]:
    """A record for each operation, dtype and sparsity."""
    problems = {
        name: Problem(layer, sparsities, device=clock.device, dtype=dtype)
        for name, dtype in DTYPES.items()
    }
    for operation in operations:
        dense = _dense(problems, operation, clock)
        for dtype, problem in problems.items():
            for sparsity in sparsities:
                yield _record(problem, operation, sparsity, dtype, dense, clock, machine)


def _dense(problems: dict[str, Problem], operation: str, clock: Clock) -> dict[str, dict]:
    times = {}
    for name, (dtype, precision) in PRECISIONS.items():
        float32_as(precision)
        for layout, run in problems[dtype].dense_runs(operation).items():
            times[layout.replace("dense", f"dense {name}")] = clock.operation(run)
    float32_as("ieee")
    return times


def _record(
    problem: Problem,
    operation: str,
    sparsity: float,
    dtype: str,
    dense: dict[str, dict],
    clock: Clock,
    machine: dict,
) -> dict:
    ms = dense | {"ours": clock.operation(problem.ours(operation, sparsity))}
    if sparsity == LAST_AT and not problem.layer.linear:
        ms["ours channels_last"] = clock.operation(problem.ours(operation, sparsity, last=True))
    flops, moved = problem.work(operation, sparsity)
    ours = ms["ours"]["median"]
    gflops, gbytes = flops / ours / 1e6, moved / ours / 1e6
    least = max(flops / machine["shared-memory GF/s"], moved / machine["copy GB/s"]) / 1e6
    return {
        "layer": str(problem.layer),
        "batch": problem.layer.batch,
        "operation": operation,
        "dtype": dtype,
        "sparsity": sparsity,
        "nnz": problem.sparse[sparsity][0].numel(),
        "ms": ms,
        "speed-up": {name: short(best(ms, name) / ours) for name in PRECISIONS},
        "GF/s": short(gflops),
        "share of peak": short(gflops / machine["peak GF/s"]),
        "share of shared memory": short(gflops / machine["shared-memory GF/s"]),
        "GB/s": short(gbytes),
        "share of copy": short(gbytes / machine["copy GB/s"]),
        "share of roofline": short(least / ours),
        "flops": flops,
        "bytes": moved,
        "max error": short(problem.error(operation, sparsity)),
    }


def best(ms: dict[str, dict], precision: str) -> float:
    """The median of dense in this precision, in its faster memory format."""
    names = (layout.replace("dense", f"dense {precision}") for layout in DENSE)
    return min(ms[name]["median"] for name in names if name in ms)


def is_wrong(record: dict) -> bool:
    exact = "fp32" if record["operation"] == "grad_weight" else record["dtype"]
    return not record["max error"] < WORST_ERROR[exact]
