"""torch.fx.symbolic_trace: a sparse layer is one node, and the graph's module holds the layer."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from helpers.nn_cases import layer, swap_pattern
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune

from dsr_kernels import SparseConv1d, SparseLinear, models, named_sparse_modules
from dsr_kernels.nn import SparseModule
from dsr_kernels.rewiring import DSR


def model() -> nn.Module:
    return nn.Sequential(
        layer(4, 8, 3, padding="same", padding_mode="reflect"),
        nn.ReLU(),
        nn.Flatten(2),
        SparseConv1d(8, 6, 3, sparsity=0.5),
        nn.Flatten(),
        SparseLinear(6 * 34, 5, sparsity=0.5),
    )


X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def test_each_sparse_layer_is_one_node_and_follows_rewires():
    net = model()
    traced = fx.symbolic_trace(net)
    calls = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    assert calls == {name for name, _ in net.named_children()}
    assert torch.equal(traced(X), net(X))
    for (name, module), (_, held) in zip(
        named_sparse_modules(net), named_sparse_modules(traced), strict=True
    ):
        assert held is module
        swap_pattern(module, module.nnz + 3)
        assert torch.equal(traced(X), net(X)), name
    again = fx.symbolic_trace(traced)
    for other in (again, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        assert torch.equal(other(X), net(X))


def test_a_traced_model_trains_under_a_rewirer():
    traced = fx.symbolic_trace(model())
    optimizer = torch.optim.SGD(traced.parameters(), lr=0.1, momentum=0.9)
    rewirer = DSR(traced, optimizer, every=1)
    for _ in range(3):
        optimizer.zero_grad()
        traced(X).square().mean().backward()
        optimizer.step()
        assert rewirer.step().pruned > 0


@pytest.mark.parametrize("make", [models.lenet_300_100, models.resnet18])
def test_our_models(make):
    net = make().eval()
    traced = fx.symbolic_trace(net)
    sparse = {name for name, _ in named_sparse_modules(net)}
    assert sparse <= {node.target for node in traced.graph.nodes if node.op == "call_module"}


def test_a_layer_alone_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"trace nn\.Sequential\(layer\)"):
        fx.symbolic_trace(SparseLinear(4, 3, nnz=5))


class Leaves(fx.Tracer):
    def is_leaf_module(self, m, qualified_name):
        return isinstance(m, SparseModule) or super().is_leaf_module(m, qualified_name)


def by_leaves(net: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(net, Leaves().trace(net))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_layer_with_hooks_is_refused_and_a_tracer_for_which_it_is_a_leaf_runs_them_once(register):
    net, x = nn.Sequential(nn.ReLU(), SparseLinear(4, 3, nnz=5)), torch.randn(2, 4)
    getattr(net[1], register)(lambda *given: given[-1][0] * 2 if len(given) == 2 else given[-1] * 2)
    with pytest.raises(ValueError, match=r"layer '1': its hooks would run twice.*is_leaf_module"):
        fx.symbolic_trace(net)
    assert torch.equal(by_leaves(net)(x), net(x))
    net[1]._forward_hooks.clear()
    net[1]._forward_pre_hooks.clear()
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_a_pruned_layer_is_traced():
    net, x = nn.Sequential(nn.ReLU(), SparseLinear(4, 3, nnz=8)), torch.randn(2, 4)
    prune.l1_unstructured(net[1], "weight_values", amount=0.5)
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


class OnABuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("anchors", torch.randn(2, 4))
        self.fc = SparseLinear(4, 3, nnz=5)

    def forward(self, x):
        return x + self.fc(self.anchors)


def test_a_layer_whose_input_is_a_buffer_is_refused_and_not_lost():
    net, x = OnABuffer(), torch.randn(2, 3)
    list(named_sparse_modules(net))
    with pytest.raises(ValueError, match=r"layer 'fc': its input does not depend.*is_leaf_module"):
        fx.symbolic_trace(net)
    traced = by_leaves(net)
    swap_pattern(net.fc, 7)
    assert torch.equal(traced(x), net(x))
    assert torch.equal(make_fx(net)(x)(x), net(x))  # which traces tensors


def test_torchvisions_feature_extractor():
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    net = models.resnet18().eval()
    early, seen = net.stage2[0].conv1, []
    extractor = extraction.create_feature_extractor(net, {"stage2.0.conv1": "early", "fc": "last"})
    images = torch.randn(1, 3, 64, 64)
    early.register_forward_hook(lambda *given: seen.append(given[2]))
    found, y = extractor(images), net(images)
    assert torch.equal(found["last"], y)
    assert torch.equal(found["early"], seen[-1])
