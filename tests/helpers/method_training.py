"""A model in training by any method, and when two such trainings are the same."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import dsr_kernels
from dsr_kernels.nn import named_sparse_modules
from dsr_kernels.rewiring import DSR, GMP, SET, SNFS, DeepR, RigL

OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


PRUNING = {"final_sparsity": 0.8, "begin": 2, "end": 24, "every": 3}


METHODS = {
    "dsr": (DSR, {"prune_fraction": 0.2, "initial_threshold": 0.01, "every": 3}),
    "dsr by size": (
        DSR,
        {"prune_fraction": 0.2, "threshold": "exact", "allocation": "N", "every": 3},
    ),
    "set": (SET, {"fraction": 0.2, "every": 3}),
    "rigl": (RigL, {"fraction": 0.3, "every": 3, "length": 40}),
    "snfs": (SNFS, {"fraction": 0.3, "every": 3, "stop": 27}),
    "deepr": (
        DeepR,
        {
            "eta": 0.5,
            "l1": 1e-3,
            "temperature": 1e-4,
            "final_temperature": 1e-8,
            "length": 40,
            "report_every": 4,
        },
    ),
    "gmp": (GMP, PRUNING),
    "gmp global": (GMP, PRUNING | {"scope": "global", "density_schedule": "exponential"}),
}


ITERATIONS = 30


class BasicBlock(nn.Module):
    """As in a ResNet, with a 1x1 convolution in its shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs)
        )

    def forward(self, x):
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.downsample(x)).relu()


class Training:
    """A small ResNet under one of the methods."""

    def __init__(self, method: str, optimizer: str, seed: int = 0) -> None:
        torch.manual_seed(seed)
        dense = nn.Sequential()
        dense.add_module("stem", nn.Conv2d(3, 8, 3, padding=1))
        dense.add_module("block", BasicBlock(8, 12))
        dense.add_module("pool", nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()))
        dense.add_module("head", nn.Linear(48, 10))
        sparsity = 0.3 if method.startswith("gmp") else 0.8
        self.model = dsr_kernels.sparsify(dense, sparsity, exclude=["stem"], preset="all")
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        make, arguments = METHODS[method]
        self.rewirer = make(self.model, self.optimizer, seed=seed, **arguments)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.8))
        self.rewirer.follow(self.average)
        self.reports = []

    @property
    def layers(self):
        return [module for _, module in named_sparse_modules(self.model)]

    @property
    def parts(self):
        return self.model, self.average, self.optimizer, self.rewirer

    def iterate(self, i: int) -> None:
        """All of an iteration but the rewirer's step."""
        generator = torch.Generator().manual_seed(i)
        images = torch.randn(6, 3, 8, 8, generator=generator)
        labels = torch.randint(10, (6,), generator=generator)
        nn.functional.cross_entropy(self.model(images), labels).backward()
        self.optimizer.step()
        self.average.update_parameters(self.model)

    def run(self, start: int, stop: int):
        for i in range(start, stop):
            self.optimizer.zero_grad()
            self.iterate(i)
            report = self.rewirer.step()
            self.reports.append(report and (report.step, report.threshold, report.layers))
            yield i + 1

    def state(self):
        """Everything that an iteration may change, as flat as torch.equal wants it."""
        grads = {k: p.grad for k, p in self.model.named_parameters()}
        return copy.deepcopy((grads, [part.state_dict() for part in self.parts]))


def assert_same(a, b) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b
