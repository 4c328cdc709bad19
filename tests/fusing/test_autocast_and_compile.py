"""Autocast, compile and export of fused models."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.fused_models import (
    MODELS,
    BasicBlock,
    check_same,
    conv3x3,
    images,
    sparse_pair,
    step,
)
from torch import nn

import dsr_kernels


@pytest.mark.parametrize("name", ["resnet", "densenet", "vgg"])
@pytest.mark.parametrize("mode", [True, False])
def test_autocast_is_as_close_to_the_truth_as_unfused(name, mode):
    torch.manual_seed(0)
    fused, plain = sparse_pair(MODELS[name](), torch.float32)
    exact = copy.deepcopy(plain).double()
    for model in (fused, plain, exact):
        model.train(mode)
    x = images(torch.float32)
    expected = exact(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        found, theirs = fused(x), plain(x)
    assert found.dtype == theirs.dtype
    error = (theirs.double() - expected).abs().mean()
    assert (found.double() - expected).abs().mean() <= 2 * error
    found.float().sum().backward()
    for (name, one), other in zip(fused.named_buffers(), plain.buffers(), strict=True):
        assert one.dtype == other.dtype, name
        if "running" in name:
            torch.testing.assert_close(one, other, rtol=0.1, atol=0.05)


def test_batch_norm_before_the_cast_is_of_what_it_was_given():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3))
    fused, plain = sparse_pair(model, torch.float32)
    x = images(torch.float32) + 1000  # whose deviations bfloat16 does not hold
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fused(x), plain(x), rtol=0.05, atol=0.05)


def test_a_sum_of_two_dtypes_is_promoted_as_in_torch():
    class Promoting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.conv(x) + x, self.bn(self.conv(x)) + x

    fused, plain = sparse_pair(Promoting(), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        for one, other in zip(
            fused(images(torch.float32)), plain(images(torch.float32)), strict=True
        ):
            assert one.dtype == other.dtype == torch.float32
            torch.testing.assert_close(one, other, rtol=0.05, atol=0.05)


def test_dense_layers_in_bfloat16_compute_by_themselves():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    fused, plain = sparse_pair(model, torch.float32)
    for each in (fused, plain):
        each[3] = each[3].dense_module()
        each[0] = each[0].dense_module()
        each.bfloat16()
    x = images(torch.bfloat16)
    for mode in (True, False):
        for each in (fused, plain):
            each.train(mode)
        with torch.no_grad():
            assert torch.equal(fused(x), plain(x))
        assert torch.equal(fused(x), plain(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_in_one_graph(backend):
    torch.manual_seed(0)
    fused, plain = sparse_pair(nn.Sequential(conv3x3(3, 6), BasicBlock(6, 8, 2), nn.Flatten()))
    compiled = torch.compile(fused, fullgraph=True, backend=backend)
    for mode in (True, False):
        compiled.train(mode), plain.train(mode)
        found, expected = step(compiled, images()), step(plain, images())
        check_same(dict(zip(expected, found.values(), strict=True)), expected, 1e-8)
        with torch.no_grad():
            torch.testing.assert_close(compiled(images()), plain(images()), rtol=1e-8, atol=1e-8)
    torch._dynamo.reset()


def test_compile_of_a_batch_norm_that_averages():
    fused, plain = sparse_pair(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)))
    compiled = torch.compile(fused, backend="eager")
    for _ in range(2):
        compiled(images()), plain(images())
    torch.testing.assert_close(fused[1].running_var, plain[1].running_var)
    torch._dynamo.reset()


def test_fusing_what_is_compiled():
    torch.manual_seed(0)
    _, plain = sparse_pair(BasicBlock(3, 4))
    compiled = torch.compile(copy.deepcopy(plain), backend="eager")
    dsr_kernels.fuse(compiled, verbose=False)
    assert type(compiled._orig_mod) is not BasicBlock
    torch.testing.assert_close(compiled(images()), plain(images()), rtol=1e-8, atol=1e-8)
    torch._dynamo.reset()


def test_export():
    torch.manual_seed(0)
    fused, plain = sparse_pair(nn.Sequential(conv3x3(3, 6), BasicBlock(6, 8, 2)))
    program = torch.export.export(fused.eval(), (images(),))
    expected = plain.eval()(images())
    torch.testing.assert_close(program.module()(images()), expected, rtol=1e-8, atol=1e-8)
