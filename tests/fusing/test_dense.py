"""Dense layers of fused models that compute otherwise than torch would."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.fused_models import check_same, step
from torch import nn

import dsr_kernels
from dsr_kernels import SparseConv2d
from dsr_kernels.fusing import dense


class Block(nn.Module):
    def __init__(self, stride: int | tuple[int, int], groups: int, bias: bool) -> None:
        super().__init__()
        self.conv = SparseConv2d(160, 160, 3, stride, padding=1, bias=False, sparsity=0.98)
        self.bn = nn.BatchNorm2d(160)
        self.shortcut = nn.Conv2d(160, 160, 1, stride, groups=groups, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)) + self.shortcut(x))


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stride, groups, bias", [(2, 1, False), ((1, 3), 1, True), (2, 2, True)])
def test_a_shortcut_reads_only_the_pixels_that_count(
    monkeypatch: pytest.MonkeyPatch, stride, groups: int, bias: bool, last: bool
) -> None:
    seen = []
    thinned = dense.thinned

    def recorded(layer: nn.Conv2d, x: torch.Tensor, *weight) -> torch.Tensor:
        seen.append(layer)
        y = thinned(layer, x, *weight)
        assert y.is_contiguous(
            memory_format=torch.channels_last if last else torch.contiguous_format
        )
        return y

    monkeypatch.setattr(dense, "thinned", recorded)
    monkeypatch.setattr(dense, "MOST_WEIGHTS", 0)
    model = Block(stride, groups, bias)
    fused = copy.deepcopy(model)
    dsr_kernels.fuse(fused, verbose=False)
    x = torch.randn(3, 160, 7, 9)
    x = x.to(memory_format=torch.channels_last) if last else x
    check_same(step(fused, x), step(model, x), 1e-4)
    assert seen
    seen.clear()
    fused.eval(), model.eval()
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-4, atol=1e-4)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1, 2, padding=1),
        nn.Conv2d(4, 4, 3, 2),
        nn.Conv2d(4, 4, 1, 2, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(4, 4, 1, 2),
    ],
)
def test_other_layers_compute_by_themselves(layer: nn.Module) -> None:
    assert not dense.thins(layer, torch.randn(1, 4, 5, 5))


def test_a_stride_that_is_one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "MOST_WEIGHTS", 0)
    model = Block(2, 1, True)
    model.shortcut.stride = 2
    fused = copy.deepcopy(model)
    dsr_kernels.fuse(fused, verbose=False)
    x = torch.randn(3, 160, 6, 6)
    check_same(step(fused, x), step(model, x), 1e-4)
