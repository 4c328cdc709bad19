"""Without gradients, in eval mode, batch norm is folded into the convolutions."""

from __future__ import annotations

import pytest
import torch
from helpers.fused_models import (
    Counts,
    DenseNet,
    ResNet,
    conv3x3,
    images,
    mobile_net,
    sparse_pair,
    vgg,
)
from torch import nn

from dsr_kernels import models

FOLDED = {  # model -> (calls of sparse_conv2d_folded, of the others)
    "resnet": (ResNet, 10, 0),
    "resnet18": (lambda: models.resnet18(0.0, width=0.125, num_classes=5), 20, 0),
    "vgg": (vgg, 4, 1),
    "densenet": (DenseNet, 4, 5 + 1),
    "mobilenet": (mobile_net, 10, 0),
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("count", [1, 4])
def test_no_batch_norm_is_left(name, count, monkeypatch):
    build, folded, others = FOLDED[name]
    torch.manual_seed(0)
    fused, plain = sparse_pair(build())
    fused.eval(), plain.eval()
    x = images(count=count)
    with torch.inference_mode():
        expected = plain(x)
        counts = Counts().install(monkeypatch)
        torch.testing.assert_close(fused(x), expected, rtol=1e-9, atol=1e-9)
    assert counts["batch_norm"] == 0
    assert counts["sparse_conv2d_folded"] == folded
    assert counts["sparse_conv2d"] + counts["sparse_conv2d_fused"] == others


def test_a_residual_block_is_one_call_for_each_convolution(monkeypatch):
    torch.manual_seed(0)
    fused, plain = sparse_pair(ResNet())
    fused.eval(), plain.eval()
    x = torch.randn(1, 8, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = plain.layer1[0](x)
        counts = Counts().install(monkeypatch)
        monkeypatch.setattr(torch.Tensor, "relu", None)
        monkeypatch.setattr("dsr_kernels.fusing.steps._used", None)
        monkeypatch.setattr("dsr_kernels.fusing.values.channel_affine", None)
        found = fused.layer1[0](x)
        monkeypatch.undo()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert counts == {"sparse_conv2d_folded": 2}


def test_what_is_loaded_or_trained_since_counts():
    torch.manual_seed(0)
    fused, plain = sparse_pair(ResNet())
    with torch.no_grad():
        fused.eval()(images())
        for model in (fused, plain):
            model.train()(images())
            model.layer1[0].bn1.weight.mul_(2)
            model.layer1[0].conv1.weight_values.mul_(2)
        found, expected = fused.eval()(images()), plain.eval()(images())
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_dense_convolution_folds_too(monkeypatch):
    model = nn.Sequential(conv3x3(3, 20), nn.BatchNorm2d(20), nn.ReLU(), conv3x3(20, 4))
    fused, plain = sparse_pair(model)
    for m in (fused, plain):
        m[0] = m[0].dense_module()
    fused.eval(), plain.eval()
    with torch.no_grad():
        expected = plain(images())
        counts = Counts().install(monkeypatch)
        torch.testing.assert_close(fused(images()), expected, rtol=1e-9, atol=1e-9)
    assert counts["batch_norm"] == 0
    assert counts["conv2d"] == 1


def test_frozen_statistics_with_gradients_are_not_folded(monkeypatch):
    torch.manual_seed(0)
    fused, _ = sparse_pair(ResNet())
    fused.eval()
    counts = Counts().install(monkeypatch)
    fused(images()).sum().backward()
    assert counts["sparse_conv2d_folded"] == counts["batch_norm"] == 0
