"""torch.export takes sparse models as they are; ONNX gets the dense one."""

from __future__ import annotations

import io

import pytest
import torch
from helpers.nn_cases import layer, swap_pattern
from torch import nn

from dsr_kernels import SparseLinear, densify, fuse


def model() -> nn.Module:
    return nn.Sequential(
        layer(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), SparseLinear(6 * 16, 5)
    ).eval()


@pytest.mark.parametrize("strict", [False, True])
def test_a_live_program_follows_rewires_and_a_saved_one_keeps_its_pattern(strict):
    net, x = model(), torch.randn(3, 4, 6, 6)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(net, (x,), strict=strict, dynamic_shapes=(batch,))
    before, file = net(x), io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    swap_pattern(net[0], net[0].nnz + 3)
    loaded = torch.export.load(file)
    for one, expected in ((program, net(x)), (loaded, before)):
        torch.testing.assert_close(one.module()(x), expected)
        torch.testing.assert_close(one.module()(x[:2]), expected[:2])


def test_an_exported_program_trains():
    conv, x = layer(4, 6, 3), torch.randn(3, 4, 6, 6)
    exported = torch.export.export(conv, (x,)).module()
    exported(x).square().sum().backward()
    grads = torch.autograd.grad(conv(x).square().sum(), list(conv.parameters()))
    for own, expected in zip(exported.parameters(), grads, strict=True):
        torch.testing.assert_close(own.grad, expected)


@pytest.mark.parametrize("fused", [False, True])
def test_onnx_is_refused_in_a_sentence(fused):
    net, x = model(), torch.randn(3, 4, 6, 6)
    if fused:
        fuse(net, verbose=False)
    with pytest.raises(NotImplementedError, match=r"dsr_kernels\.densify\(model\)"):
        torch.onnx.export(net, (x,), io.BytesIO(), dynamo=False)
    assert torch.equal(net(x), net(x))  # it is over


def test_onnx_by_way_of_torch_export():
    pytest.importorskip("onnxscript")
    net, x = model(), torch.randn(3, 4, 6, 6)
    with pytest.raises(torch.onnx.OnnxExporterError, match=r"dsr_kernels\.densify\(model\)"):
        torch.onnx.export(net, (x,), dynamo=True, verbose=False)
    assert torch.onnx.export(densify(net), (x,), dynamo=True, verbose=False) is not None
