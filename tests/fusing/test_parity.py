"""Fused and unfused agree in outputs, gradients and running statistics."""

from __future__ import annotations

import pytest
import torch
from helpers.fused_models import MODELS, Counts, check_same, images, sparse_pair, step, tensors

from dsr_kernels import models

OWN = {
    "wrn28": lambda: models.wrn_28(0.25, 0.0),
    "resnet18": lambda: models.resnet18(0.0, width=0.125, num_classes=5),
    "resnet50": lambda: models.resnet50(0.0, width=0.0625, num_classes=5),
}
ALL = MODELS | OWN


@pytest.mark.parametrize("name", ALL)
def test_training_steps_agree(name, monkeypatch):
    torch.manual_seed(0)
    fused, plain = sparse_pair(ALL[name]())
    x = images()
    for _ in range(3 if name in MODELS else 1):  # deep ones amplify rounding
        counts = Counts()
        with monkeypatch.context() as patched:
            counts.install(patched)
            found = step(fused, x)
        check_same(found, step(plain, x), 1e-8)
        assert counts["sparse_conv2d_fused"] > 0
        for model in (fused, plain):
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.01 * parameter.grad.clamp(-1, 1)


@pytest.mark.parametrize("name", ALL)
def test_inference_agrees(name):
    torch.manual_seed(0)
    fused, plain = sparse_pair(ALL[name]())
    fused.eval(), plain.eval()
    for x in (images(), images(count=1)):
        check_same(step(fused, x), step(plain, x), 1e-9)
        with torch.no_grad():
            for a, b in zip(tensors(fused(x)), tensors(plain(x)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet", "densenet", "branches"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_float32_and_memory_formats(name, channels_last):
    torch.manual_seed(0)
    fused, plain = sparse_pair(ALL[name](), torch.float32)
    x = images(torch.float32)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
        fused, plain = (m.to(memory_format=torch.channels_last) for m in (fused, plain))
    check_same(step(fused, x), step(plain, x), 1e-3)


def test_a_fused_dense_net_runs_every_batch_norm_inside(monkeypatch):
    torch.manual_seed(0)
    fused, _ = sparse_pair(MODELS["densenet"]())
    counts = Counts().install(monkeypatch)
    step(fused, images())
    assert counts["batch_norm"] == 0
    assert counts["sparse_conv2d"] == 1  # the first, whose output is concatenated
    assert counts["sparse_conv2d_fused"] == 9
