"""A small model in training, whose rewirer is attached or steps explicitly."""

from __future__ import annotations

import copy

import torch
from helpers.method_training import METHODS, OPTIMIZERS
from torch import nn

from dsr_kernels.nn import SparseLinear


class Small:
    """Two sparse layers; gradients of `micro` batches make a step."""

    def __init__(self, method: str = "dsr", optimizer: str = "momentum", **more) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            SparseLinear(12, 8, nnz=40), nn.Tanh(), SparseLinear(8, 8, nnz=24)
        )
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        make, arguments = METHODS[method]
        often = {} if method == "deepr" else {"every": 2}
        self.rewirer = make(self.model, self.optimizer, **arguments | often | more)
        self.reports = []

    @property
    def parts(self):
        return self.model, self.optimizer, self.rewirer

    def gradients(self, i: int, micro: int = 1) -> None:
        self.optimizer.zero_grad()
        for part in range(micro):
            generator = torch.Generator().manual_seed(10 * i + part)
            self.model(torch.randn(5, 12, generator=generator)).square().sum().backward()

    def train(self, begin: int, end: int, micro: int = 1, explicit: bool = False) -> Small:
        for i in range(begin, end):
            self.gradients(i, micro)
            self.optimizer.step()
            if explicit and (report := self.rewirer.step()) is not None:
                self.reports.append(report)
        return self

    def attach(self, **more):
        return self.rewirer.attach(on_rewire=self.reports.append, **more)

    def state(self):
        gradients = [p.grad for p in self.model.parameters()]
        optimizer = self.optimizer.state_dict()
        optimizer.pop("dsr_kernels", None)
        return copy.deepcopy(
            [self.model.state_dict(), optimizer, self.rewirer.state_dict(), gradients]
        )
