"""A model that trains by GraphedStep, beside a twin that trains in a plain loop."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dsr_kernels.cuda import GraphedStep
from dsr_kernels.nn import SparseConv2d, SparseLinear

Batch = tuple[Tensor, Tensor]
CPU = torch.device("cpu")


def network(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"sparsity": 0.6, "generator": torch.Generator().manual_seed(seed)}
    return nn.Sequential(
        SparseConv2d(3, 8, 3, padding=1, **options),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(dropout),
        SparseConv2d(8, 8, 3, stride=2, **options),
        nn.ReLU(),
        nn.Flatten(),
        SparseLinear(8 * 9, 8, **options),
        nn.ReLU(),
        nn.Linear(8, 5),
    )


def sgd(model: nn.Module, **options: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.9} | options)


def batches(count: int, size: int = 6, seed: int = 1) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(size, 3, 8, 8, generator=generator)
        yield x, torch.randint(0, 5, (size,), generator=generator)


def same(one: Tensor, other: Tensor) -> bool:
    """Bit for bit; every nan is one."""
    return torch.equal(one.nan_to_num(7), other.nan_to_num(7)) and torch.equal(
        one.isnan(), other.isnan()
    )


class Side:
    """One of the two: a model, what trains it, and its loop."""

    def __init__(
        self, model: nn.Module, make_optimizer: Callable, make_rewirer: Any, device: torch.device
    ) -> None:
        self.model = model
        self.optimizer = make_optimizer(model)
        self.rewirer = make_rewirer and make_rewirer(model, self.optimizer)
        self.scaler = torch.amp.GradScaler(device.type, init_scale=1024.0, growth_interval=4)


class Twins:
    """Both sides; `train` gives them the same batches and asserts that they stay the same, bit for
    bit: losses, gradients, weights, statistics, the optimizer's state and the random numbers.
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        make_optimizer: Callable = sgd,
        make_rewirer: Any = None,
        attach: bool = False,
        clip: float | None = None,
        scaled: bool = False,
        autocast: torch.dtype | None = None,
        device: torch.device = CPU,
    ) -> None:
        model = (network() if model is None else model).to(device)
        self.device = device
        self.plain = Side(copy.deepcopy(model), make_optimizer, make_rewirer, device)
        self.graphed = Side(model, make_optimizer, make_rewirer, device)
        self.clip, self.scaled, self.autocast, self.attached = clip, scaled, autocast, attach
        self.reports: list[Any] = []
        if attach:
            for side in self.sides:
                side.rewirer.attach(on_rewire=lambda report, side=side: self._note(side, report))
        self.step = GraphedStep(
            self.graphed.model,
            F.cross_entropy,
            self.graphed.optimizer,
            self.graphed.rewirer,
            autocast=autocast,
            scaler=self.graphed.scaler if scaled else None,
            before_step=None if clip is None else self._clip_graphed,
        )

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.plain, self.graphed

    def _note(self, side: Side, report: Any) -> None:
        if side is self.graphed:
            self.reports.append(report)

    def _clip_graphed(self) -> None:
        nn.utils.clip_grad_norm_(self.graphed.model.parameters(), self.clip)

    def _plain_step(self, x: Tensor, target: Tensor) -> Tensor:
        side = self.plain
        torch.clear_autocast_cache()  # else torch trains on old weights within an outer autocast
        side.optimizer.zero_grad()
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            loss = F.cross_entropy(side.model(x), target)
        if self.scaled:
            side.scaler.scale(loss).backward()
            side.scaler.unscale_(side.optimizer)
        else:
            loss.backward()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(side.model.parameters(), self.clip)
        if self.scaled:
            side.scaler.step(side.optimizer)
            side.scaler.update()
        else:
            side.optimizer.step()
        if side.rewirer is not None and not self.attached:
            side.rewirer.step()
        return loss.detach()

    def train(self, given: Iterator[Batch]) -> list[float]:
        losses = []
        for x, target in given:
            x, target = x.to(self.device), target.to(self.device)
            random = self._random()
            expected = self._plain_step(x, target)
            after = self._random()
            self._set_random(random)
            loss = self.step(x, target)
            losses.append(loss.item())
            assert same(loss, expected)
            assert torch.equal(self._random(), after)
            self.compare()
        return losses

    def _random(self) -> Tensor:
        cuda = self.device.type == "cuda"
        return torch.cuda.get_rng_state(self.device) if cuda else torch.get_rng_state()

    def _set_random(self, state: Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.set_rng_state(state)

    def compare(self) -> None:
        plain, graphed = self.sides
        states = plain.model.state_dict(), graphed.model.state_dict()
        for (name, one), other in zip(states[0].items(), states[1].values(), strict=True):
            assert same(one, other), name
        pairs = zip(plain.model.parameters(), graphed.model.parameters(), strict=True)
        for one, other in pairs:
            if one.grad is None or other.grad is None:
                assert one.grad is None and other.grad is None
            else:
                assert same(one.grad, other.grad)
            mine, theirs = (
                plain.optimizer.state.get(one, {}),
                graphed.optimizer.state.get(other, {}),
            )
            assert mine.keys() == theirs.keys()
            for key, value in mine.items():
                if torch.is_tensor(value):
                    assert same(value, theirs[key]), key
                else:
                    assert value == theirs[key], key
        if self.scaled:
            assert plain.scaler.state_dict() == graphed.scaler.state_dict()
        if plain.rewirer is not None:
            assert plain.rewirer.iteration == graphed.rewirer.iteration
            assert plain.rewirer.rewires == graphed.rewirer.rewires
