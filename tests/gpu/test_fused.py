"""The fused operations on the GPU against their meaning in float64 on the CPU."""

from __future__ import annotations

from itertools import cycle

import pytest
import torch
from helpers.cuda_fused_cases import PARTS, by_operations, check, problem

from .cases import DTYPES, LARGE, SMALL, TINY, on_device
from .device import DEVICE, cuda_only

pytestmark = pytest.mark.gpu
FLOATS = (torch.float32, torch.bfloat16)
TYPES = (*DTYPES, torch.float32)  # as many as meet each of PARTS in turn
floats = pytest.mark.parametrize("dtype", FLOATS, ids=str)


@pytest.mark.sanitizer
@pytest.mark.parametrize("name", TINY)
@floats
def test_tiny(name: str, dtype: torch.dtype) -> None:
    p = problem(*on_device(name, dtype))
    check(p, by_operations(p))


@pytest.mark.parametrize(
    "name, dtype, parts", list(zip(SMALL, cycle(TYPES), cycle(PARTS), strict=False)), ids=str
)
def test_convolutions(name: str, dtype: torch.dtype, parts: str) -> None:
    for chosen in {"everything", parts}:
        p = problem(*on_device(name, dtype), **PARTS[chosen])
        check(p, by_operations(p))


@pytest.mark.parametrize("name", ["32 wide of WRN", "32 wide of WRN, stride 2", "1 x 1 of ResNet"])
@floats
def test_large_convolutions(name: str, dtype: torch.dtype) -> None:
    conv, x = on_device(name, dtype, LARGE)
    p = problem(conv, x.to(memory_format=torch.channels_last))
    check(p, by_operations(p))


@floats
def test_two_runs_have_the_same_bits(dtype: torch.dtype) -> None:
    p = problem(*on_device("129 images", dtype))
    one, two = by_operations(p), by_operations(p)
    assert all(torch.equal(one[name], two[name]) for name in one)


@cuda_only
def test_a_graph_has_the_bits_of_eager_mode() -> None:
    p = problem(*on_device("16 wide", torch.float32))
    expected = by_operations(p)  # makes the lists
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = by_operations(p)
    p.x.copy_(p.x.flip(0)), graph.replay()
    p.x.copy_(p.x.flip(0)), graph.replay()
    torch.cuda.synchronize(DEVICE)
    assert all(torch.equal(found[name], expected[name]) for name in found)
