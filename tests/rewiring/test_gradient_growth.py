"""The gradient of a dense weight, in blocks that never come together."""

from __future__ import annotations

import sys

import pytest
import torch
from helpers.memory import peak_growth
from helpers.method_cases import sparse_layers
from hypothesis import given, settings
from hypothesis import strategies as st

from dsr_kernels.nn import SparseConv2d
from dsr_kernels.ops import watch
from dsr_kernels.rewiring import dense_gradient


class Recorder:
    """Keeps what a layer's last backward pass showed."""

    def used(self, values):
        pass

    def passed(self, values, x, grad, shape):
        self.seen = x, grad, shape


def dense_twin_gradient(layer, x, grad):
    """torch's own gradient of the dense weight, in float64."""
    twin = layer.dense_module().double()
    twin(x.double()).backward(grad.double())
    return twin.weight.grad


def rows_of(layer, seen) -> torch.Tensor:
    x, grad, shape = seen
    blocks = dense_gradient.row_chunks(shape.rows, layer.row_length, shape.groups)
    parts = [dense_gradient.grad_weight_rows(x, grad, a, b, shape) for a, b in blocks]
    assert sum(len(part) for part in parts) == shape.rows
    return torch.cat(parts).view(layer.weight_shape)


@pytest.mark.filterwarnings("ignore:Using padding=.same:UserWarning")
@pytest.mark.parametrize("kind", ["float32", "float64", "bfloat16", "autocast around backward"])
@pytest.mark.parametrize("row_block", [1, 20, 2**18])
@settings(max_examples=25, deadline=None)
@given(sparse_layers(), st.sampled_from(["zeros", "circular"]), st.integers(0, 99))
def test_blocks_of_rows_make_the_dense_gradient(kind, row_block, layer, mode, seed):
    generator = torch.Generator().manual_seed(seed)
    conv = isinstance(layer, SparseConv2d)
    if conv:
        layer.padding_mode = mode
    if kind == "float64":
        layer.double()
    size = (layer.in_channels, 6, 7) if conv else (layer.in_features,)
    x = torch.randn(3, *size, generator=generator, dtype=layer.weight_values.dtype)
    recorder = Recorder()
    watch.watch(recorder)
    with torch.autocast("cpu", enabled="float" not in kind or kind == "bfloat16"):
        y = layer(x)
        grad = torch.randn(y.shape, generator=generator).to(y.dtype)
        if kind != "bfloat16":
            y.backward(grad)
    if kind == "bfloat16":
        y.backward(grad)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_gradient, "ROW_CHUNK", row_block)
        with torch.autocast("cpu", enabled=kind.startswith("autocast")):
            found = rows_of(layer, recorder.seen)
    assert found.dtype == (torch.float64 if kind == "float64" else torch.float32)
    x = x if kind.startswith("float") else x.bfloat16()  # as the layer saw it
    wanted = dense_twin_gradient(layer, x, grad)
    tolerance = 1e-12 if kind == "float64" else 2e-5
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_no_dense_gradient_exists():
    """It would take 151 MB; a rewire must do with the blocks' share and the activations'."""
    preamble = """
import torch
from dsr_kernels import SparseConv2d
from dsr_kernels.rewiring import RigL
def train(layer, x):
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    rewirer = RigL(layer, optimizer, every=1, length=10)
    layer(x).square().sum().backward()
    optimizer.step()
    assert rewirer.step().pruned
train(SparseConv2d(8, 8, 3, padding=1), torch.randn(1, 8, 4, 4, requires_grad=True))
"""
    code = """
layer = SparseConv2d(2048, 2048, 3, padding=1, sparsity=0.999)
train(layer, torch.randn(1, 2048, 4, 4, requires_grad=True))
"""
    assert peak_growth(preamble, code) < 60
