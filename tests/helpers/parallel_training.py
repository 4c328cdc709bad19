"""A small sparse model that one or several processes train on the same batches."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from helpers.team import Team, device
from torch import Tensor, nn

from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.rewiring import DSR, SET, SNFS, DeepR, Rewirer, RigL

BATCH = 8
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "dsr": (DSR, {"prune_fraction": 0.3, "threshold": "exact", "every": 5}),
    "set": (SET, {"fraction": 0.3, "every": 5}),
    "rigl": (RigL, {"fraction": 0.3, "every": 5, "length": 200}),
    "snfs": (SNFS, {"fraction": 0.3, "every": 5, "length": 200}),
    "deepr": (
        DeepR,
        {"eta": 0.05, "l1": 1e-3, "temperature": 1e-4, "final_temperature": 1e-8, "length": 200},
    ),
}


def make_model(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(
        SparseConv2d(2, 8, 3, sparsity=0.5, dtype=dtype),
        nn.ReLU(),
        SparseConv2d(8, 8, 3, sparsity=0.7, groups=2, dtype=dtype),
        nn.Flatten(),
        SparseLinear(8 * 4, 12, sparsity=0.8, dtype=dtype),
        nn.ReLU(),
        nn.Linear(12, 3, dtype=dtype),
    )
    return model.to(device())


def batch(number: int, rank: int, size: int, dtype: torch.dtype = torch.float64):
    """This process's part of a batch of BATCH."""
    generator = torch.Generator().manual_seed(number)
    x = torch.randn(BATCH, 2, 6, 6, generator=generator, dtype=dtype)
    y = torch.randn(BATCH, 3, generator=generator, dtype=dtype)
    part = slice(rank * BATCH // size, (rank + 1) * BATCH // size)
    return x[part].to(device()), y[part].to(device())


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9} | options)


def make(method: str, model: nn.Module, optimizer: Any, **options: Any):
    kind, defaults = METHODS[method]
    return kind(model, optimizer, **defaults | options)


def step(model: nn.Module, optimizer: Any, number: int, rank: int, size: int) -> Tensor:
    x, y = batch(number, rank, size, next(model.parameters()).dtype)
    loss = (model(x) - y).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def train(method: str, iterations: int, rank: int = 0, size: int = 1, **options: Any):
    """Trains as the only process, or in DistributedDataParallel; returns the model's state."""
    model = make_model()
    wrapped = DistributedDataParallel(model, **options) if size > 1 else model
    optimizer = sgd(model)
    rewirer = make(method, wrapped, optimizer, seed=3)
    for number in range(iterations):
        step(wrapped, optimizer, number, rank, size)
        rewirer.step()
    assert rewirer.rewires > 1
    return state_of(model)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy({key: value.cpu() for key, value in model.state_dict().items()})


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor], exactly: bool = False) -> None:
    """Patterns are the same, values are within rounding."""
    assert one.keys() == other.keys()
    for key, value in one.items():
        if exactly or not value.is_floating_point():
            assert torch.equal(value, other[key]), key
        else:
            torch.testing.assert_close(value, other[key], rtol=1e-9, atol=1e-11, msg=key)


def assert_as_alone(team: Team, training: Callable[[int, int], dict[str, Tensor]]) -> None:
    """All processes of the team end alike, and as one that trains on all of each batch."""
    states = team.run(training)
    for state in states[1:]:
        assert_equal(states[0], state, exactly=True)
    assert_equal(states[0], training(0, 1))


def message_of(call: Callable[[], Any], kind: Any = RuntimeError) -> str:
    """What a call raises; empty where it does not."""
    try:
        call()
    except kind as error:
        return str(error)
    return ""


class Training(NamedTuple):
    model: nn.Module
    wrapped: nn.Module  # without it, the rewirer would find a process alone
    optimizer: torch.optim.Optimizer
    rewirer: Rewirer


def trained(rank: int, size: int, method: str = "set", seed: int = 0, **options) -> Training:
    model = make_model()
    wrapped = DistributedDataParallel(model)
    optimizer = sgd(model)
    rewirer = make(method, wrapped, optimizer, seed=seed, **options)
    step(wrapped, optimizer, 0, rank, size)
    return Training(model, wrapped, optimizer, rewirer)
