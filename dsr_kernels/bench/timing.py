"""Times one layer against dense. `dsr bench` prints the records, the benchmarks keep them.

Implementations alternate within each round, so that a slow moment of the machine meets all of them
alike. Ratios compare the fastest rounds. Convolutions and linear layers have no bias here. In
bfloat16 dense has its weight in bfloat16 already: no cast is timed. Ours keeps float32 values.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

from dsr_kernels.backends.native import _C
from dsr_kernels.bench.problem import OPERATIONS, Problem
from dsr_kernels.bench.rivals import short, verdict

MASKED = "dense + mask"
# Relative to the largest element of the float64 result. Rounding once to bfloat16 costs 2^-8.
WORST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 5e-3}


class Alternation:
    """Named runs that take turns: `round` times each of them once. There is one warm-up round."""

    def __init__(self, runs: Mapping[Any, Callable[[], object]]) -> None:
        self.runs = runs
        self.times: dict[Hashable, list[float]] = {name: [] for name in runs}
        self.round()
        for taken in self.times.values():
            taken.clear()

    def round(self) -> None:
        for name, run in self.runs.items():
            start = time.perf_counter()
            result = run()
            self.times[name].append(1e3 * (time.perf_counter() - start))
            del result  # freed when no clock runs, and before the next one allocates

    def milliseconds(self) -> dict[Any, dict[str, float]]:
        """{name: {"min": ms, "median": ms}} of the rounds so far."""
        return {
            name: {"min": round(min(taken), 4), "median": round(median(taken), 4)}
            for name, taken in self.times.items()
        }


def with_mask(problem: Problem, operation: str) -> dict[str, Callable]:
    """The dense runs, and one with a mask in the memory format that is faster without it."""
    plain = problem.dense_runs(operation)
    quick = Alternation(plain)
    for _ in range(2):
        quick.round()
    like = min(plain, key=lambda name: min(quick.times[name]))
    return plain | {MASKED: problem.masked_run(operation, like)}


def record(
    problem: Problem,
    operation: str,
    sparsity: float,
    milliseconds: Mapping[str, Mapping[str, float]],
    peak: float,
) -> dict[str, Any]:
    """The record of one comparison, as plain JSON. `rivals.verdict` explains its ratios.

    Args:
        milliseconds: the times of the dense runs and of "ours", which GF/s, GB/s and bytes are of.
        peak: GF/s of multiply-adds from registers. GF/s and GB/s of a record are of `Problem.work`.
    """
    layer, ours = problem.layer, milliseconds["ours"]["min"]
    values, threads = problem.sparse[sparsity][0], torch.get_num_threads()
    kinds = OPERATIONS[:3] if operation == "module" else (operation,)
    flops, moved = problem.work(operation, sparsity)
    passes = problem.passes(sparsity)
    written = {"forward": problem.grad.nbytes, "grad_input": problem.x.nbytes}
    written["grad_weight"] = values.nbytes
    peaks = []
    for kind in kinds:
        run = passes[kind if kind == "grad_input" else "forward"]
        peaks.append(written[kind] + run.workspace_bytes(kind, layer.batch, threads))
    named = ("forward", "grad_input") if operation == "module" else (operation,)
    variants = [passes["grad_input" if o == "grad_input" else "forward"].variant for o in named]
    return {
        "layer": str(layer),
        "batch": layer.batch,
        "operation": operation,
        "sparsity": sparsity,
        "nnz": values.numel(),
        "block_size": problem.block_size,
        "ms": milliseconds,
        **verdict(milliseconds),
        "GF/s": short(flops / ours / 1e6),
        "share of peak": short(flops / ours / 1e6 / peak),
        "GB/s": short(moved / ours / 1e6),
        "flops": flops,
        "bytes": moved,
        "peak bytes": max(peaks),
        "max error": short(problem.error(operation, sparsity)),
        "variant": " / ".join(dict.fromkeys(variants)),
        "isa": _C.isa(),
        "threads": threads,
    }


def compare(
    problem: Problem,
    operation: str,
    rounds: int,
    peak: float,
    repeat: Callable[[Callable[[], None], int], None] | None = None,
    peers: Mapping[str, Mapping[float, Callable]] | None = None,
    low: Problem | None = None,
    others: Sequence[tuple[Problem, Problem | None]] = (),
) -> list[dict[str, Any]]:
    """A record for each sparsity. All of them are timed in one alternation with dense.

    Args:
        repeat: runs the rounds, as in ``repeat(round, rounds)``; a plain loop if None.
        peers: further sparse implementations, name -> sparsity -> run.
        low: ``problem.in_bfloat16()``, to time dense and ours in bfloat16 too.
        others: (problem, low) of the same tensors with other sparse weights, such as blocks; they
            take turns with the rest, and have records of their own behind it.

    Raises AssertionError where a result is wrong.
    """
    dense = with_mask(problem, operation)
    if low is not None:
        dense |= {_in_bf16(name): run for name, run in low.dense_runs(operation).items()}
    both = [(problem, low), *others]
    sparse: dict[tuple[str, float, int], Callable] = {}
    for i, (full, half) in enumerate(both):
        sparse |= {("ours", s, i): full.ours(operation, s) for s in full.sparse}
        if half is not None:
            sparse |= {("ours bf16", s, i): half.ours(operation, s) for s in half.sparse}
    sparse |= {(name, s, 0): run for name, by in (peers or {}).items() for s, run in by.items()}
    alternation = Alternation(dense | sparse)
    if repeat is None:
        for _ in range(rounds):
            alternation.round()
    else:
        repeat(alternation.round, rounds)
    taken = alternation.milliseconds()
    records = []
    for i, (full, half) in enumerate(both):
        for sparsity in full.sparse:
            times = {name: taken[name] for name in dense}
            times |= {key[0]: taken[key] for key in sparse if key[1:] == (sparsity, i)}
            records.append(record(full, operation, sparsity, times, peak))
            for each in filter(None, (full, half)):
                _check(each, operation, sparsity)
    return records


def _in_bf16(name: str) -> str:
    """The name of a dense run in bfloat16, as `rivals` reads it."""
    return name.replace("dense", "dense bf16", 1)


def _check(problem: Problem, operation: str, sparsity: float) -> None:
    error, worst = problem.error(operation, sparsity), WORST_ERROR[problem.dtype]
    what = f"{problem.layer} {operation} at {sparsity} in {problem.dtype}"
    assert error < worst, f"{what}: error {error:.1e}"
