"""The cache of native plans: built once, bounded, never stale."""

from __future__ import annotations

import gc

import torch
from helpers.nn_cases import layer, swap_pattern

from dsr_kernels.backends import cpu_plans
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.backends.patterns import Patterns, patterns
from dsr_kernels.topology import Topology


class Counted:
    bytes, made = 1, 0


def counted(crow_indices: torch.Tensor, col_indices: torch.Tensor, key: str) -> Counted:
    Counted.made += 1
    return Counted()


def test_a_plan_is_built_once_per_pattern_and_geometry():
    patterns.clear()
    conv, x = layer(4, 6, 3), torch.randn(2, 4, 5, 5, requires_grad=True)
    for batch in (1, 2, 1):
        conv(x[:batch]).square().sum().backward()
    assert len(patterns.plans()) == 2  # grad-weight shares the forward's, grad-input has its own
    conv(torch.randn(2, 4, 6, 6))
    assert len(patterns.plans()) == 3
    assert sum(plan.bytes for plan in patterns.plans()) > 0


def test_plans_of_dead_patterns_are_dropped():
    patterns.clear()
    conv, x = layer(4, 6, 3), torch.randn(2, 4, 5, 5)
    for nnz in range(10, 30):
        swap_pattern(conv, nnz)
        conv(x).sum().backward()
        conv.zero_grad()
    gc.collect()
    assert len(patterns.plans()) <= 2


def test_the_plans_are_bounded_and_the_oldest_go():
    few = Patterns(max_plans=3)
    drawn = [Topology.random((6, 4), 7) for _ in range(8)]
    for topology in drawn:
        few.plan(topology.crow_indices, topology.col_indices, "key", counted)
    assert len(few.plans()) == 3
    topology = Topology.random((6, 4, 3, 3), 20)
    pattern = topology.crow_indices, topology.col_indices
    shape = ConvShape((6, 4, 3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    for size in range(5, 12):
        sizes = (4, size, size), (6, size - 2, size - 2)
        few.plan(*pattern, cpu_plans.Geometry(*sizes, shape, torch.float32), cpu_plans.build_plan)
        few.plan(*pattern, "used all along", counted)
    assert len(few.plans()) == 3
    assert Counted.made == 9  # eight patterns, and one that stayed


class Sized:
    def __init__(self, size: int) -> None:
        self.bytes = size


def sized(crow_indices: torch.Tensor, col_indices: torch.Tensor, key: tuple[str, int]) -> Sized:
    return Sized(key[1])


def test_the_plans_are_bounded_by_what_they_take():
    """But large ones of a few input sizes stay: else each step would make them anew."""
    few = Patterns(max_bytes=100)
    small, large = (Topology.random((6, 4), 7) for _ in range(2))
    small, large = ((t.crow_indices, t.col_indices) for t in (small, large))
    for size in range(300):
        few.plan(*small, (f"size {size}", 7), sized)
        few.plan(*small, ("used all along", 2), sized)
    assert sum(plan.bytes for plan in few.plans()) == 2 + 14 * 7
    kept = few.plan(*small, ("used all along", 2), sized)
    for size in range(20):
        few.plan(*large, (f"size {size}", 1000), sized)
        few.plan(*small, ("used all along", 2), sized)
    held = [plan.bytes for plan in few.plans()]
    assert held.count(1000) == 8 and kept in few.plans()


def test_a_layer_over_many_input_sizes_holds_a_bounded_amount():
    patterns.clear()
    conv = layer(64, 64, 3, padding=1, sparsity=0.3)
    with torch.no_grad():
        conv(torch.randn(1, 64, 6, 6))
        (plan,) = patterns.plans()
        pattern = conv.crow_indices, conv.col_indices
        few = Patterns(max_bytes=3 * plan.bytes)
        sizes = (((64, n, n), (64, n, n)) for n in range(3, 40))
        shape = ConvShape((64, 64, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
        for size in sizes:
            few.plan(
                *pattern, cpu_plans.Geometry(*size, shape, torch.float32), cpu_plans.build_plan
            )
    assert sum(each.bytes for each in few.plans()) <= 9 * plan.bytes


def test_a_reused_address_never_finds_a_stale_plan():
    """Two patterns live one after the other in the same memory; each must get its own plan."""
    x, conv = torch.randn(1, 4, 5, 5), layer(4, 6, 3)
    memory = [bytearray(4 * 7), bytearray(4 * conv.nnz)]
    for seed in range(3):
        drawn = Topology.random(conv.weight_shape, conv.nnz, generator=torch.manual_seed(seed))
        crow, col = (torch.frombuffer(m, dtype=torch.int32) for m in memory)
        crow.copy_(drawn.crow_indices)
        col.copy_(drawn.col_indices)
        conv.replace_topology(crow, col, torch.randn(conv.nnz))
        del crow, col
        expected = torch.nn.functional.conv2d(x, conv.to_dense(), conv.bias)
        torch.testing.assert_close(conv(x), expected)


def test_inference_mode():
    with torch.inference_mode():
        conv = layer(4, 6, 3)
        x = torch.randn(1, 4, 5, 5)
        before = conv(x)
        torch.testing.assert_close(
            before, torch.nn.functional.conv2d(x, conv.to_dense(), conv.bias)
        )
    conv = layer(4, 6, 3)
    with torch.inference_mode():
        conv(torch.randn(1, 4, 5, 5))
