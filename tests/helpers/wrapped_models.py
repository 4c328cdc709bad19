"""A small model with sparse layers, and what such a model is wrapped in or held by."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.nn import SparseConv2d, SparseLinear


class WithModule(nn.Module):
    """A model that has an attribute `module` of its own, beside another sparse layer."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Sequential(SparseConv2d(2, 4, 3, nnz=20), nn.Flatten())
        self.fc = SparseLinear(16, 3, nnz=12)

    def forward(self, x):
        return self.fc(self.module(x))


class Holder(nn.Module):
    """As a LightningModule holds its network."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.model(x)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return WithModule()


WRAPPERS = {
    "plain": lambda model: model,
    "AveragedModel": AveragedModel,
    "DataParallel": nn.DataParallel,
    "DDP": DistributedDataParallel,
    "compiled": torch.compile,
    "compiled DDP": lambda model: torch.compile(DistributedDataParallel(model)),
    "checkpointed": checkpoint_wrapper,
    "held": Holder,
    "held, compiled inside": lambda model: Holder(torch.compile(model)),
    "unknown": lambda model: nn.ModuleDict({"module": model}),  # timm's averages, say
}
NAMES = ["module.0", "fc"]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)
