"""torch.compile(fullgraph=True): equal to eager, forward and backward, also while nnz changes."""

from __future__ import annotations

import pytest
import torch
from helpers.nn_cases import layer, swap_pattern
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from dsr_kernels import SparseConv1d, SparseLinear, named_sparse_modules


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model() -> nn.Module:
    return nn.Sequential(
        layer(4, 8, 3, padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        layer(8, 6, (3, 2), stride=2, groups=2, bias=False, seed=1),
        nn.Flatten(),
        SparseLinear(6 * 12, 5, sparsity=0.5),
    )


def results(call, net, x):
    leaf = x.detach().requires_grad_()
    y = call(leaf)
    grads = torch.autograd.grad(y.square().sum(), [leaf, *net.parameters()])
    return [y.detach(), *grads]


def assert_same(compiled, net, x):
    for ours, eager in zip(results(compiled, net, x), results(net, net, x), strict=True):
        torch.testing.assert_close(ours, eager)


@pytest.mark.parametrize("last", [False, True])
def test_fullgraph_equals_eager_and_stays_so_while_nnz_changes(last):
    net = model()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    x = torch.randn(3, 4, 7, 8)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    assert_same(compiled, net, x)
    for nnz in (20, 31, 31, 45, 12, 27, 40, 33, 21, 50, 11, 29):
        for _, module in named_sparse_modules(net):
            swap_pattern(module, nnz, seed=nnz)
        assert_same(compiled, net, x)
    assert counter.frame_count == 1


def test_layers_that_change_one_after_the_other_compile_nothing_anew():
    net = nn.Sequential(
        layer(4, 8, 3, padding=1),
        nn.ReLU(),
        layer(8, 8, 3, padding=1, bias=False, block_size=4, seed=1),
        nn.Flatten(2),
        SparseConv1d(8, 6, 3, sparsity=0.5),
        SparseLinear(34, 5, sparsity=0.5),
    )
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(net, fullgraph=True, backend=counter)
    x = torch.randn(3, 4, 6, 6)
    assert_same(compiled, net, x)
    for turn, (_, module) in enumerate([*named_sparse_modules(net)] * 2):
        swap_pattern(module, module.nnz + (turn - 3 or 1) * module.block_size, seed=turn)
        assert_same(compiled, net, x)
    assert counter.frame_count == 1


@pytest.mark.slow
def test_inductor_equals_eager():
    net = nn.Sequential(layer(4, 6, 3), nn.ReLU(), nn.Flatten(), SparseLinear(6 * 9, 5))
    assert_same(torch.compile(net, fullgraph=True), net, torch.randn(3, 4, 5, 5))


def test_compiled_under_autocast():
    conv, x = layer(4, 6, 3), torch.randn(2, 4, 6, 6)
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = compiled(x)
        assert y.dtype == torch.bfloat16
        assert torch.equal(y, conv(x))


def test_compiled_with_dynamic_batch():
    conv = layer(4, 6, 3)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(conv, fullgraph=True, backend=counter, dynamic=True)
    for batch in (2, 3, 5, 9):
        x = torch.randn(batch, 4, 6, 6)
        torch.testing.assert_close(compiled(x), conv(x))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("input_grad", [True, False])
@pytest.mark.parametrize("nnz", [64, 40])
def test_compiled_backward_through_an_older_pattern_is_refused(nnz, input_grad):
    conv = layer(4, 6, 3)
    assert conv.nnz == 64
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    loss = compiled(torch.randn(2, 4, 6, 6, requires_grad=input_grad)).sum()
    swap_pattern(conv, nnz)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    assert conv.weight_values.grad is None
