"""Whatever is done to a model after it was fused counts, as if it had not been."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.fsdp
from helpers.fused_models import (
    BasicBlock,
    Counts,
    ResNet,
    check_same,
    images,
    sparse_pair,
    step,
)
from torch import nn
from torch.nn.utils import parametrize, prune

import dsr_kernels

LAYERS = ["layer1.0", "layer1.0.conv1", "layer1.0.bn1", "layer1.0.relu", "layer2", "layer2.0.bn2"]


def pair() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return sparse_pair(ResNet())


@pytest.mark.parametrize("name", ["", *LAYERS, "layer2.0.downsample.0", "layer2.0.downsample.1"])
def test_hooks_fire_with_tensors(name):
    seen = {}
    for key, model in zip(("fused", "plain"), pair(), strict=True):
        calls = seen.setdefault(key, [])
        module = model.get_submodule(name)

        def before(module, args, calls=calls):
            calls.append(args[0].detach().clone())

        def after(module, args, output, calls=calls):
            calls.append(output.detach().clone())
            return output * 2

        def back(module, grad_input, grad_output, calls=calls):
            calls.append(grad_output[0].detach().clone())

        for (
            relu
        ) in model.modules():  # torch's backward hooks and in-place layers do not go together
            if isinstance(relu, nn.ReLU):
                relu.inplace = False
        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)
        if name not in ("layer1.0.relu", "layer2.0.bn2", "layer2.0.downsample.1"):
            module.register_full_backward_hook(back)
        calls.append(step(model, images()))
    (*fused, one), (*plain, other) = seen["fused"], seen["plain"]
    check_same(one, other, 1e-9)
    assert len(fused) == len(plain) >= 2
    for a, b in zip(fused, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)


def test_hooks_on_a_block_leave_the_others_fused(monkeypatch):
    fused, _ = pair()
    fused.layer1[0].register_forward_hook(lambda *_: None)
    counts = Counts().install(monkeypatch)
    step(fused, images())
    assert counts["sparse_conv2d_fused"] > 5


def test_hooks_on_all_modules_fire():
    fused, plain = pair()
    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, y: seen.append(type(m)))
    try:
        fused(images())
        ours = seen.copy()
        seen.clear()
        plain(images())
    finally:
        handle.remove()
    assert [getattr(kind, "plain_class", kind) for kind in ours] == seen


@pytest.mark.parametrize("inplace", [False, True])
def test_densify(inplace):
    fused, plain = pair()
    dense = dsr_kernels.densify(fused, inplace=inplace)
    assert not any(isinstance(m, dsr_kernels.SparseModule) for m in dense.modules())
    for mode in (True, False):
        dense.train(mode), plain.train(mode)
        found, expected = step(dense, images()), step(plain, images())
        for key in ("output 0", "x", "bn1.weight", "fc.bias", "layer2.0.bn1.running_var"):
            if key in expected:
                torch.testing.assert_close(found[key], expected[key], rtol=1e-8, atol=1e-8)


def test_sparsify_of_a_dense_model_that_is_fused_already():
    torch.manual_seed(0)
    model = ResNet().double()
    report = dsr_kernels.fuse(model, verbose=False)
    assert type(model) is ResNet  # nothing sparse: nothing to fuse
    assert report.rows
    sparse = dsr_kernels.sparsify(model, 0.5, inplace=True, preset="all")
    sparse(images())
    dsr_kernels.fuse(sparse, verbose=False)
    assert type(sparse) is not ResNet


def new_forward(x):
    return x + 1


CHANGES = {
    "a block": lambda m: m.layer1.__setitem__(1, nn.Conv2d(8, 8, 1).double()),
    "a block's forward": lambda m: setattr(m.layer1[0], "forward", new_forward),
    "a layer's forward": lambda m: setattr(m.layer1[0].bn1, "forward", new_forward),
    "another ReLU": lambda m: setattr(m.layer1[0], "relu", nn.ReLU6()),
    "no shortcut": lambda m: setattr(m.layer1[0], "downsample", nn.Identity()),
    "a longer stage": lambda m: m.layer1.append(nn.Sigmoid()),
    "a shorter stage": lambda m: m.layer1.__delitem__(1),
    "another batch norm": lambda m: setattr(m.layer1[0], "bn1", nn.GroupNorm(2, 8).double()),
    "no batch norm": lambda m: setattr(m.layer1[0], "bn2", nn.Identity()),
    "a dense layer": lambda m: setattr(m.layer1[0], "conv2", m.layer1[0].conv2.dense_module()),
    "no bias": lambda m: setattr(m.layer1[0].bn1, "bias", None),
    "padding": lambda m: setattr(m.layer1[0].conv1, "padding_mode", "circular"),
    "frozen": lambda m: m.layer1[0].requires_grad_(False),
    "pruned": lambda m: prune.l1_unstructured(m.layer1[0].conv1, "weight_values", 0.5),
    "parametrized": lambda m: parametrize.register_parametrization(
        m.layer1[0].conv1, "weight_values", nn.Tanh()
    ),
    "parametrized norm": lambda m: parametrize.register_parametrization(
        m.layer1[0].bn1, "weight", nn.Tanh()
    ),
    "not in place": lambda m: [setattr(r, "inplace", False) for r in m.modules()],
    "another model's class": lambda m: setattr(m.layer1[0], "__class__", Doubled),
}


class Doubled(BasicBlock):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("name", CHANGES)
def test_modules_that_are_exchanged_or_changed(name):
    fused, plain = pair()
    for model in (fused, plain):
        torch.manual_seed(3)
        CHANGES[name](model)
    for mode in (True, False):
        fused.train(mode), plain.train(mode)
        check_same(step(fused, images()), step(plain, images()), 1e-8)
        with torch.no_grad():
            torch.testing.assert_close(fused(images()), plain(images()), rtol=1e-8, atol=1e-8)


class Doubling(nn.Module):
    def forward(self, x):
        return x.mul_(2)


@pytest.mark.parametrize("how", ["a flag", "another layer"])
def test_a_layer_that_becomes_one_that_writes_to_its_input(how):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
            self.last = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            y = self.conv(x)
            return self.relu(y).mean() + self.last(self.bn(y))

    fused, plain = sparse_pair(Both())
    for model in (fused, plain):
        if how == "a flag":
            model.relu.inplace = True
        else:
            model.relu = Doubling()
    for mode in (True, False):
        fused.train(mode), plain.train(mode)
        with torch.no_grad():
            torch.testing.assert_close(fused(images()), plain(images()), rtol=1e-9, atol=1e-9)
    assert torch.allclose(fused.bn.running_var, plain.bn.running_var)


def test_a_part_of_a_fused_model_is_fused_too(monkeypatch):
    fused, plain = pair()
    x = torch.randn(2, 8, 9, 9, dtype=torch.float64)
    expected = plain.layer1(x)
    counts = Counts().install(monkeypatch)
    torch.testing.assert_close(fused.layer1(x), expected, rtol=1e-9, atol=1e-9)
    assert counts["sparse_conv2d_fused"] == 4


def test_a_class_made_of_a_fused_one_is_said_and_kept():
    model = nn.Sequential(ParametrizedBlock())
    dsr_kernels.sparsify(model, 0.5, inplace=True, preset="all")
    dsr_kernels.fuse(model, verbose=False)
    parametrize.register_parametrization(model[0], "factor", nn.Tanh())
    expected = model(images(torch.float32))
    kind = type(model[0])
    report = dsr_kernels.fuse(model, verbose=False)
    assert type(model[0]) is kind
    assert "made for it (parametrized" in report.not_traced["0"]
    torch.testing.assert_close(model(images(torch.float32)), expected)
    parametrize.remove_parametrizations(model[0], "factor")
    assert "spec" in vars(type(model[0]))  # the fused class once more
    torch.testing.assert_close(model(images(torch.float32)), expected)


@pytest.mark.filterwarnings("ignore")
def test_a_fused_model_that_is_sharded_trains(tmp_path):
    dist = torch.distributed
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        fused, plain = sparse_pair(ResNet(), torch.float32)
        for model in (fused, plain):
            dist.fsdp.fully_shard(model, mesh=mesh)
        found = [model(images(torch.float32)) for model in (fused, plain)]
        torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
        for y in found:
            y.square().sum().backward()
        report = dsr_kernels.fuse(fused, verbose=False)
        assert report.not_traced["the model"].startswith("is in a class that was made for it")
    finally:
        dist.destroy_process_group()


class ParametrizedBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(1))
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x)) * self.factor
