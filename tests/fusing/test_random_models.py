"""Random chains of batch norms, ReLUs, convolutions and sums, in place and not, with branches."""

from __future__ import annotations

import random

import pytest
import torch
from helpers.fused_models import check_same, images, sparse_pair, step
from torch import nn

import dsr_kernels

OPS = ("conv", "conv", "conv", "bn", "bn", "bn", "relu", "relu", "relu_", "add", "iadd", "add_")
OPS += ("relu layer", "relu_ layer", "other", "dropout", "mul_")


class Chain(nn.Module):
    """Values are [N, 4, H, W]; each step takes some of them and adds one, or writes to one."""

    def __init__(self, seed: int, length: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.first = nn.Conv2d(3, 3, 1)
        self.steps: list[tuple[str, int, int]] = []
        self.layers = nn.ModuleDict()
        count = 2
        for i in range(length):
            op = draw.choice(OPS)
            recent = max(0, count - 3)
            one, other = draw.randrange(recent, count), draw.randrange(recent, count)
            self.steps.append((op, one, other))
            self.layers[str(i)] = self._layer(op, draw)
            count += 1

    def _layer(self, op: str, draw: random.Random) -> nn.Module:
        if op == "conv":
            return nn.Conv2d(4, 4, draw.choice((1, 3)), padding="same", bias=draw.random() < 0.3)
        layers = {"bn": nn.BatchNorm2d(4), "dropout": nn.Dropout(0.0)}
        layers |= {"relu layer": nn.ReLU(), "relu_ layer": nn.ReLU(inplace=True)}
        return layers.get(op, nn.Identity())

    def forward(self, x):
        x = self.first(x)
        values = [torch.cat([x, x[:, :1]], 1), torch.cat([x[:, :1], x], 1) * 0.5]
        for i, (op, one, other) in enumerate(self.steps):
            a, b = values[one], values[other]
            if op in ("conv", "bn", "relu layer", "relu_ layer", "dropout"):
                y = self.layers[str(i)](a)
            elif op == "relu":
                y = torch.relu(a)
            elif op == "relu_":
                y = torch.relu_(a)
            elif op == "add":
                y = a + b
            elif op == "iadd":
                a += b
                y = a
            elif op == "add_":
                y = a.add_(b)
            elif op == "mul_":
                y = a.mul_(0.5)
            else:
                y = torch.tanh(a)
            values.append(y)
        return {"last": values[-1] + 0, "all": sum(v.mean() for v in values[-4:]).reshape(1, 1)}


@pytest.mark.parametrize("seed", range(60))
def test_a_random_model(seed):
    torch.manual_seed(seed)
    fused, plain = sparse_pair(Chain(seed, 4 + seed % 12), sparsity=0.3)
    report = dsr_kernels.fuse(fused, verbose=False)
    assert not report.not_traced, report
    for mode in (True, False):
        fused.train(mode), plain.train(mode)
        try:
            expected = step(plain, images(size=6))
        except RuntimeError as error:  # autograd refuses what was written to
            assert "modified by an inplace operation" in str(error)
        else:
            check_same(step(fused, images(size=6)), expected, 1e-7)
        plain.load_state_dict(fused.state_dict())
        with torch.no_grad():
            one, other = fused(images(size=6)), plain(images(size=6))
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
