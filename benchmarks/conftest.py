"""What all benchmarks share: the number of rounds, and the machine's yardsticks.

DSR_BENCH_ROUNDS=1 only shows that everything works.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable

import pytest
import torch
from peers import status

from dsr_kernels.backends.native import _C
from dsr_kernels.backends.processor import processor_facts
from dsr_kernels.bench.rivals import rival_sentence

COPY_BYTES = 256 << 20


@functools.cache
def yardsticks() -> dict:
    """Peak of multiply-adds in GF/s, a copy's traffic in GB/s, the processor, and settings."""
    threads = torch.get_num_threads()
    source = torch.ones(COPY_BYTES // 4)
    target, taken = torch.empty_like(source), []
    for _ in range(8):
        start = time.perf_counter()
        target.copy_(source)
        taken.append(time.perf_counter() - start)
    return {
        **processor_facts(),
        "peak GF/s": round(max(_C.peak_gflops(threads, 0.3) for _ in range(3)), 1),
        "copy GB/s": round(2 * COPY_BYTES / min(taken) / 1e9, 2),
        "isa": _C.isa(),
        "threads": threads,
        "torch": torch.__version__,
    }


@pytest.fixture(scope="session")
def peak() -> float:
    return yardsticks()["peak GF/s"]


@pytest.fixture(scope="session")
def rounds() -> Callable[[int], int]:
    """rounds(n) is n, but at most DSR_BENCH_ROUNDS."""
    most = int(os.environ.get("DSR_BENCH_ROUNDS", "1000"))
    return lambda wanted: min(wanted, most)


def pytest_report_header(config: pytest.Config) -> str:
    return f"{status()}; {rival_sentence()}"


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["yardsticks"] = yardsticks()
