"""Measures peaks of training, each variant in a process of its own. Run with `make bench`."""

from __future__ import annotations

import sys

import pytest
from whole_models.memory import ALLOCATORS, memory_record
from whole_models.variants import RESNET, WRN, Case


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("case", (WRN, RESNET), ids=lambda case: case.name)
def test_peak_memory_of_training(benchmark, case: Case, allocator: str) -> None:
    record = benchmark.pedantic(memory_record, (case, allocator), rounds=1)
    benchmark.extra_info["records"] = [record]
    assert min(record["process peak bytes"].values()) > 0
