"""Times each operation of single layers, sparse at several sparsities and dense, in turn.

Both sides run in float32 and, where oneDNN takes it, in bfloat16.

Run with `make bench`. It records speed and asserts correctness. A benchmark's extra_info holds a
record for each sparsity (dsr_kernels.bench.timing.record); its own time is that of a whole round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from layers import BREAK_EVEN, FAMILIES, SPARSITIES
from peers import peer_runs

from dsr_kernels.bench.problem import OPERATIONS, Layer, Problem
from dsr_kernels.bench.rivals import bf16_here
from dsr_kernels.bench.timing import compare

CASES = [(family, layer) for family, layers in FAMILIES.items() for layer in layers]


@functools.lru_cache(maxsize=1)  # a layer's operations follow each other
def problems_of(layer: Layer, sparsities: tuple[float, ...]) -> tuple[Problem, Problem | None]:
    """The layer in float32, and in bfloat16."""
    problem = Problem(layer, sparsities)
    return problem, problem.in_bfloat16() if bf16_here() else None


def measure(
    benchmark: Any,
    family: str,
    layer: Layer,
    operation: str,
    sparsities: tuple[float, ...],
    rounds: int,
    peak: float,
) -> None:
    """Records one operation of a layer at each of the sparsities."""

    def repeat(run: Callable[[], None], count: int) -> None:
        benchmark.pedantic(run, rounds=count)

    problem, low = problems_of(layer, sparsities)
    peers = peer_runs(problem, operation) if sparsities == SPARSITIES else None
    records = compare(problem, operation, rounds, peak, repeat, peers, low)
    benchmark.extra_info["records"] = [{"family": family, **each} for each in records]
    assert len(records) == len(sparsities)


def case_id(value: object) -> str:
    return str(value).replace(" ", "_")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("family, layer", CASES, ids=case_id)
def test_layer(benchmark, family: str, layer: Layer, operation: str, rounds, peak) -> None:
    measure(benchmark, family, layer, operation, SPARSITIES, rounds(15), peak)


@pytest.mark.parametrize("operation", OPERATIONS[:3])
@pytest.mark.parametrize("layer", FAMILIES["WRN 3x3"], ids=case_id)
def test_break_even(benchmark, layer: Layer, operation: str, rounds, peak) -> None:
    measure(benchmark, "WRN 3x3", layer, operation, BREAK_EVEN, rounds(7), peak)
