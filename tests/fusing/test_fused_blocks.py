"""Models of blocks, fused: the same as unfused, in training, inference and over rewires."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.fused_models import MODELS, Counts, check_same, images, sparse_pair, step

import dsr_kernels
from dsr_kernels import named_sparse_modules
from dsr_kernels.models import wrn_28
from dsr_kernels.rewiring import DSR


def assert_in_blocks(model: torch.nn.Module) -> None:
    sizes = [module.block_size for _, module in named_sparse_modules(model)]
    assert max(sizes) > 1, sizes


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("name", ["resnet", "densenet", "mobilenet", "vgg", "branches"])
def test_training_steps_agree(name: str, size: int, monkeypatch) -> None:
    torch.manual_seed(0)
    fused, plain = sparse_pair(MODELS[name](), block_size=size)
    assert_in_blocks(fused)
    counts = Counts()
    with monkeypatch.context() as patched:
        counts.install(patched)
        found = step(fused, images())
    assert counts["sparse_conv2d_fused"] > 0
    check_same(found, step(plain, images()), 1e-8)


@pytest.mark.parametrize("name", ["resnet", "densenet", "vgg"])
def test_inference_agrees(name: str, monkeypatch) -> None:
    torch.manual_seed(0)
    fused, plain = sparse_pair(MODELS[name](), block_size=8)
    fused.eval(), plain.eval()
    with torch.no_grad():
        expected = plain(images())
        counts = Counts().install(monkeypatch)
        torch.testing.assert_close(fused(images()), expected, rtol=1e-9, atol=1e-9)
    assert counts["sparse_conv2d_folded"] + counts["sparse_conv2d_fused"] > 0


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_wide_resnet_in_float32(channels_last: bool) -> None:
    torch.manual_seed(0)
    plain = wrn_28(0.5, 0.8, block_size=8)
    fused = copy.deepcopy(plain)
    dsr_kernels.fuse(fused, verbose=False)
    x = images(torch.float32, size=8)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
        fused, plain = (m.to(memory_format=torch.channels_last) for m in (fused, plain))
    check_same(step(fused, x), step(plain, x), 1e-3)


def test_a_fused_model_goes_on_over_rewires() -> None:
    torch.manual_seed(0)
    pair = sparse_pair(MODELS["resnet"](), block_size=4)
    rewirers = []
    for model in pair:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        rewirers.append((DSR(model, optimizer, every=1, threshold="exact"), optimizer))
    for seed in range(3):
        found = []
        for model, (rewirer, optimizer) in zip(pair, rewirers, strict=True):
            found.append(step(model, images() + seed))
            optimizer.step()
            report = rewirer.step()
            assert report is not None and report.pruned > 0
        check_same(*found, 1e-7)
    for (_, one), (_, other) in zip(*map(named_sparse_modules, pair), strict=True):
        assert torch.equal(one.col_indices, other.col_indices)
