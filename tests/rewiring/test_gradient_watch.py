"""Who sees a layer's gradient when: rewirers that appear and vanish, models that change."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from helpers.method_cases import Bundle, assert_rewired, entries, snapshot
from helpers.method_oracles import best_free, order
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.ops import watch
from dsr_kernels.rewiring import SNFS, RigL, dense_gradient

QUICK = settings(max_examples=60, deadline=None)


def test_watchers_are_gone_with_whom_they_belong_to():
    model = nn.Sequential(SparseLinear(6, 5, nnz=12))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert not watch.watchers
    rewirer = RigL(model, optimizer, every=2, stop=4)
    other = RigL(model, optimizer, every=3, length=9)
    armed = []
    for _ in range(7):
        model(torch.randn(3, 6)).sum().backward()
        optimizer.step()
        rewirer.step()
        armed.append(len(watch.watchers))
    assert armed == [1, 0, 1, 0, 0, 0, 0]
    for _ in range(2):
        other.step()
    assert len(watch.watchers) == 1
    del other
    gc.collect()
    assert not watch.watchers


def armed(layers, method=RigL, **arguments):
    """A bundle whose every iteration is followed by a rewire."""
    bundle = Bundle(layers)
    optimizer = torch.optim.SGD(bundle.parameters(), lr=0.0, momentum=0.9)
    arguments = {"fraction": 0.4, "fraction_schedule": "constant", "every": 1} | arguments
    return bundle, optimizer, method(bundle, optimizer, **arguments)


def assert_rigl(before, after, layer, gradient, count):
    values = {p: e[0] for p, e in before.items()}
    grown = best_free((layer.numel, values), gradient, count)
    assert_rewired(before, after, set(order(values)[:count]), grown)


@QUICK
@given(st.integers(0, 10**6), st.sampled_from([1, 7, 2**18]))
def test_blocks_and_ties_do_not_matter(seed, row_block):
    layers = [SparseLinear(9, 7, nnz=30), SparseConv2d(4, 6, 3, groups=2, nnz=50)]
    bundle, _, rewirer = armed(layers)
    before = snapshot(bundle)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_gradient, "ROW_CHUNK", row_block)
        found = bundle.backward(seed)
    rewirer.step()
    for layer, old, gradient, count in zip(bundle.layers, before, found, (12, 20), strict=True):
        assert_rigl(old, entries(layer), layer, gradient, count)


def test_the_last_backward_pass_decides():
    bundle, _, rewirer = armed([SparseLinear(9, 7, nnz=30)])
    bundle.backward(0)
    before, found = snapshot(bundle), bundle.backward(1)
    rewirer.step()
    assert_rigl(before[0], entries(bundle.layers[0]), bundle.layers[0], found[0], 12)


class Shared(nn.Module):
    """One weight three times: a module in two places, and another module with its Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = SparseLinear(8, 8, nnz=30, bias=False), SparseLinear(8, 8, bias=False)
        self.b.replace_topology(
            self.a.crow_indices.clone(), self.a.col_indices.clone(), self.a.weight_values.detach()
        )
        self.b.weight_values = self.a.weight_values

    def forward(self, x):
        return self.b(self.a(self.a(x).tanh()).tanh())


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_of_a_shared_weight_the_sum_decides(micro_batches):
    torch.manual_seed(0)
    model = Shared().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    rewirer = RigL(model, optimizer, fraction=0.4, every=1, length=100)
    for _ in range(micro_batches):
        x = torch.randn(5, 8, dtype=torch.float64)
        model(x).square().sum().backward()
    weight = model.a.to_dense().detach().requires_grad_()
    y = x
    for i in range(3):
        y = F.linear(y, weight)
        y = y.tanh() if i < 2 else y
    y.square().sum().backward()
    before = entries(model.a)
    count = round(rewirer.fraction.at(1) * 30)
    rewirer.step()
    assert_rigl(before, entries(model.a), model.a, weight.grad.numpy(), count)
    assert torch.equal(model.b.col_indices, model.a.col_indices)


def test_a_second_use_that_was_not_foreseen_makes_a_layer_sit_out():
    """The rewirer is made between the forward and the backward pass."""
    model = Shared()
    y = model(torch.randn(5, 8)).sum()
    rewirer = RigL(model, torch.optim.SGD(model.parameters(), lr=0.0), every=1, length=9)
    y.backward()
    assert rewirer.step().pruned == 0


@pytest.mark.parametrize("method", [RigL, SNFS])
def test_a_layer_without_a_gradient_sits_out(method):
    layers = [SparseLinear(9, 7, nnz=n) for n in (30, 20, 10)]
    bundle, optimizer, rewirer = armed(layers, method)
    bundle.backward(0)
    optimizer.step()
    rewirer.step()
    first, second, third = snapshot(bundle)
    x = torch.randn(4, 9)
    loss = bundle.layers[0](x).sum() + bundle.layers[1](x / 0).square().sum()
    loss.backward()
    assert not bundle.layers[1].weight_values.grad.isfinite().all()
    report = rewirer.step()
    assert report.pruned == report.grown > 0
    assert snapshot(bundle)[1:] == [second, third]
    assert len(entries(bundle.layers[0])) == len(first)


def test_without_a_backward_pass_nothing_changes():
    bundle, _, rewirer = armed([SparseLinear(9, 7, nnz=30)])
    for _ in range(2):
        before = snapshot(bundle), rewirer.state_dict()
        for rewire in (rewirer.step, rewirer.rewire):
            with pytest.raises(RuntimeError, match="expected a backward pass, in eager mode"):
                rewire()
            assert (snapshot(bundle), rewirer.state_dict()) == before
        bundle.backward(0)
        assert rewirer.step().pruned == 12  # and a next one has nothing seen


def test_what_was_seen_serves_one_rewire():
    bundle, _, rewirer = armed([SparseLinear(9, 7, nnz=30)])
    bundle.backward(0)
    assert rewirer.rewire().pruned == 12
    with pytest.raises(RuntimeError, match="found no gradient"):
        rewirer.rewire()


@pytest.mark.parametrize("nnz", [30, 25])
def test_a_model_that_is_loaded_after_the_rewirer_was_made(nnz):
    saved = Bundle([SparseLinear(9, 7, nnz=nnz)]).state_dict()
    bundle, _, rewirer = armed([SparseLinear(9, 7, nnz=30)])
    bundle.load_state_dict(saved)
    before, found = snapshot(bundle), bundle.backward(0)
    rewirer.step()
    layer = bundle.layers[0]
    assert_rigl(before[0], entries(layer), layer, found[0], round(0.4 * nnz))
    bundle.backward(1)
    bundle.load_state_dict(saved)  # between the gradient and the rewire: those are other positions
    before = snapshot(bundle)
    assert rewirer.step().pruned == 0 and snapshot(bundle) == before


def test_layers_frozen_or_thawed_meanwhile():
    layers = [SparseLinear(9, 7, nnz=30) for _ in range(3)]
    layers[2].weight_values.requires_grad_(False)
    bundle, _, rewirer = armed(layers)
    layers[2].weight_values.requires_grad_(True)
    layers[0].weight_values.requires_grad_(False)
    before, found = snapshot(bundle), bundle.backward(0)
    report = rewirer.step()
    assert [row.pruned for row in report.layers] == [12, 12]
    assert snapshot(bundle)[0] == before[0]
    assert_rigl(before[2], entries(layers[2]), layers[2], found[2], 12)
    for layer in layers:
        layer.weight_values.requires_grad_(False)
    assert rewirer.step().layers == []


def test_empty_layers_do_not_get_in_the_way():
    layers = [SparseLinear(3, 2, nnz=0), SparseLinear(9, 7, nnz=0), SparseConv2d(3, 4, 3, nnz=20)]
    bundle, _, rewirer = armed(layers)
    before, found = snapshot(bundle), bundle.backward(0)
    rewirer.step()
    assert_rigl(before[2], entries(layers[2]), layers[2], found[2], 8)
    assert snapshot(bundle)[:2] == before[:2]


def test_under_gradient_checkpointing():
    torch.manual_seed(1)
    first = nn.Sequential(SparseConv2d(3, 6, 3, nnz=50), nn.ReLU(), SparseConv2d(6, 5, 3, nnz=60))
    patterns = []
    for checkpointed in (False, True):
        model = copy.deepcopy(first)
        rewirer = RigL(model, torch.optim.SGD(model.parameters(), lr=0.0), every=1, length=9)
        x = torch.randn(4, 3, 7, 7, generator=torch.Generator().manual_seed(2))
        y = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
        y.square().sum().backward()
        assert rewirer.step().pruned > 20
        patterns.append([set(entries(model[i])) for i in (0, 2)])
    assert patterns[0] == patterns[1]


def test_a_compiled_backward_pass_is_not_seen():
    model = nn.Sequential(SparseConv2d(3, 6, 3, nnz=50), nn.ReLU(), nn.Flatten())
    rewirer = RigL(model, torch.optim.SGD(model.parameters(), lr=0.0), every=1, length=9)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(torch.randn(2, 3, 6, 6)).sum().backward()
    with pytest.raises(RuntimeError, match="do not compile the sparse layers' backward"):
        rewirer.step()
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    assert rewirer.step().pruned > 0


def test_gradients_by_torch_func_are_not_seen():
    model = nn.Sequential(SparseLinear(6, 5, nnz=12), nn.ReLU(), SparseLinear(5, 4, nnz=8))
    rewirer = RigL(model, torch.optim.SGD(model.parameters(), lr=0.0), every=1, length=9)
    x, own = torch.randn(3, 6), dict(model.named_parameters())
    torch.func.grad(lambda given: torch.func.functional_call(model, given, (x,)).sum())(own)
    with pytest.raises(RuntimeError, match="nor take it by"):
        rewirer.step()
    model(x).sum().backward()
    assert rewirer.step().pruned > 0


@pytest.mark.parametrize("copied", [False, True])
def test_inputs_that_are_overwritten_before_the_rewire(copied):
    """They are kept where a weight is used twice."""
    layer = SparseLinear(5, 5, nnz=10)
    bundle, _, rewirer = armed([layer])
    x = torch.randn(3, 5)
    layer(layer(x)).sum().backward()
    if copied:
        bundle, rewirer = copy.deepcopy((bundle, rewirer))
        assert copy.deepcopy((bundle, rewirer))[1].step().grown == 4
        rewirer.step()
        return
    before = snapshot(bundle)
    x.mul_(2)
    overwritten = copy.deepcopy((bundle, rewirer))[1]
    for one in (rewirer, overwritten):
        with pytest.raises(RuntimeError, match=r"layer 'layers\.0': something has written"):
            one.step()
        assert one.rewires == 0
    assert snapshot(bundle) == before
