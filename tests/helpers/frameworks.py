"""A training that frameworks run: the model, its data, and the plain loop to compare with."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR, DeepR, Rewirer, RigL

BATCH, EPOCHS = 8, 2
STEPS = 16  # optimizer steps of the whole training
METHODS = {
    "dsr": (DSR, {"every": 2, "initial_threshold": 0.1}),
    "rigl": (RigL, {"every": 2}),
    "deepr": (DeepR, {"eta": 0.5, "l1": 1e-3, "temperature": 1e-4, "final_temperature": 1e-8}),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = SparseLinear(12, 8, nnz=40)
        self.second = SparseLinear(8, 3, nnz=12)

    def forward(self, x: Tensor, labels: Tensor | None = None):
        y = self.second(self.first(x).relu())
        return y if labels is None else {"loss": nn.functional.cross_entropy(y, labels)}


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(BATCH * STEPS // EPOCHS, 12, generator=generator)
    return TensorDataset(features, torch.randint(3, (len(features),), generator=generator))


def loader(batch: int = BATCH) -> DataLoader:
    return DataLoader(data(), batch_size=batch)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def make(method: str = "dsr"):
    """What builds the rewirer from model, optimizer and the number of steps."""
    kind, arguments = METHODS[method]

    def made(model: nn.Module, optimizer, total: int | None) -> Rewirer:
        return kind(model, optimizer, total=total, **arguments)

    return made


def plain(method: str = "dsr", accumulate: int = 1, make_optimizer=sgd) -> tuple[Net, Rewirer]:
    """Trained by a loop with explicit steps, of `accumulate` micro-batches each."""
    model = Net()
    optimizer = make_optimizer(model)
    rewirer = make(method)(model, optimizer, STEPS)
    for _ in range(EPOCHS):
        for x, y in loader():
            optimizer.zero_grad()
            for part, labels in zip(x.chunk(accumulate), y.chunk(accumulate), strict=True):
                (model(part, labels)["loss"] / accumulate).backward()
            optimizer.step()
            rewirer.step()
    assert rewirer.rewires > 1
    return model, rewirer


def assert_alike(model: nn.Module, expected: nn.Module) -> None:
    found, wanted = model.state_dict(), expected.state_dict()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name
