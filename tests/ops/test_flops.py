"""torch's counter of FLOPs sees what the sparse layers compute: 2 for each multiply-add."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dsr_kernels.nn import SparseConv1d, SparseConv2d, SparseLinear


def count(call) -> dict[str, int]:
    """FLOPs of each of our operations in call()."""
    with FlopCounterMode(display=False) as counter:
        call()
    counted = counter.get_flop_counts()["Global"]
    assert counter.get_total_flops() == sum(counted.values())
    return {str(op).removeprefix("dsr_kernels.sparse_conv2d"): n for op, n in counted.items()}


CASES = {
    "conv2d": (
        SparseConv2d(4, 8, 3, stride=2, padding=1, groups=2, nnz=30),
        (3, 4, 8, 8),
        2 * 30 * 3 * 4 * 4,
    ),
    "conv1d": (SparseConv1d(4, 6, 3, dilation=2, nnz=20), (2, 4, 9), 2 * 20 * 2 * 5),
    "linear": (SparseLinear(5, 7, nnz=11), (2, 3, 5), 2 * 11 * 2 * 3),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "wrap", [lambda f: f, torch.compile(backend="aot_eager")], ids=["eager", "compiled"]
)
def test_each_pass_counts_every_non_zero_once_per_pixel(name, wrap):
    layer, size, flops = CASES[name]
    x = torch.randn(size, requires_grad=True)
    run = wrap(layer)
    assert count(lambda: run(x)) == {"": flops}
    backward = {"": flops, "_grad_input": flops, "_grad_weight": flops, "_grad_bias": 0}
    assert count(lambda: run(x).sum().backward()) == backward
    loss = layer(x).sum()  # outside
    assert count(loss.backward) == {name: n for name, n in backward.items() if name}
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert count(lambda: layer(x.detach())) == {"": flops}
    meta = copy.deepcopy(layer).to("meta")
    assert count(lambda: meta(x.to("meta"))) == {"": flops}


def test_at_full_density_it_is_what_the_dense_layer_counts():
    dense = nn.Conv2d(4, 6, 3, padding=1)
    sparse = SparseConv2d.from_dense(dense, sparsity=0.0)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    totals = []
    for layer in (dense, sparse):
        with FlopCounterMode(display=False) as counter:
            layer(x).sum().backward()
        totals.append(counter.get_total_flops())
    assert totals[0] == totals[1]


def test_second_derivatives_are_counted():
    layer = SparseLinear(5, 7, nnz=11, bias=False)
    x = torch.randn(3, 5, requires_grad=True)

    loss = layer(x).square().sum()  # outside: torch follows modules by hooks that grad() refuses

    def twice():
        (gx,) = torch.autograd.grad(loss, x, create_graph=True)
        gx.sum().backward()

    counted = count(twice)
    assert set(counted) == {"", "_grad_input", "_grad_weight"}
    assert all(n % (2 * 11 * 3) == 0 and n for n in counted.values())


def test_an_op_that_is_called_by_its_name_and_a_formula_of_the_users_own():
    x, values = torch.ones(2, 4, 1, 1), torch.ones(1)
    crow, col = torch.tensor([0, 1]).int(), torch.tensor([2]).int()
    geometry = [1, 4, 1, 1], [1, 1], [0, 0, 0, 0], [1, 1], 1
    op = torch.ops.dsr_kernels.sparse_conv2d
    assert count(lambda: op(x, values, None, crow, col, *geometry)) == {"": 4}
    with FlopCounterMode(display=False, custom_mapping={op: lambda *_, **__: 17}) as counter:
        op(x, values, None, crow, col, *geometry)
    assert counter.get_total_flops() == 17


def test_the_counter_is_not_imported_before_it_is_used():
    program = """
import sys, torch, dsr_kernels
layer = dsr_kernels.SparseLinear(4, 2, nnz=3)
layer(torch.ones(5, 4)).sum().backward()
assert "torch.utils.flop_counter" not in sys.modules
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    layer(torch.ones(5, 4))
print(counter.get_total_flops())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "30", done.stderr
