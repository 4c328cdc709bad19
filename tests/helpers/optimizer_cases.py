"""Optimizers around optimizers, as other packages write them, and one layer to try them on."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import Rewirer, Static
from dsr_kernels.topology import Topology

BEFORE, AFTER = [0, 1, 2, 8, 9, 10], [0, 1, 2, 5, 7, 9]
MOMENTUM, MOVED = [1.0, 2.0, 3.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 0.0, 0.0, 4.0]
SMALL = [8, 10]  # of BEFORE: those that a rewire prunes


class Planned(Rewirer):
    """Prunes the two smallest weights and grows at the free positions 5 and 7."""

    def _prune(self, plan, layers):
        plan.prune_smallest_each([2] * len(layers))
        return 0.0, 0.0

    def _grow(self, plan, layers):
        plan.grow([2] * len(layers))
        # Free before the rewire: 3, 4, 5, 6, 7, 11.
        return [torch.tensor([2, 4]) for _ in layers]


def small_layer() -> SparseLinear:
    """At BEFORE, with the weights of SMALL smaller than the others."""
    layer = SparseLinear(6, 2, nnz=6, bias=False)
    values = torch.tensor([0.1 if p in SMALL else 2.0 + p for p in BEFORE])
    return place(layer, BEFORE, values)


def place(layer: SparseLinear, positions: list[int], values: Tensor) -> SparseLinear:
    pattern = Topology.from_positions(layer.weight_shape, torch.tensor(positions))
    layer.replace_topology(pattern.crow_indices, pattern.col_indices, values)
    return layer


def fill(optimizer: torch.optim.Optimizer, layer: SparseLinear) -> None:
    optimizer.state[layer.weight_values]["momentum_buffer"] = torch.tensor(MOMENTUM)[:, None]


def momentum(optimizer: torch.optim.Optimizer, layer: SparseLinear) -> list[float]:
    return optimizer.state[layer.weight_values]["momentum_buffer"].flatten().tolist()


def sgd(layer: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)


# ---- wrappers -----------------------------------------------------------------------------------


class Lookahead(torch.optim.Optimizer):
    """timm's: Optimizer's constructor is not called, the slow weights are in the inner state."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self._base_optimizer = inner
        self.param_groups = inner.param_groups
        self.defaults = inner.defaults
        self.state = defaultdict(dict)

    def step(self, closure=None):
        return self._base_optimizer.step(closure)


class SAM(torch.optim.Optimizer):
    """The usual one: a constructor of its own state, and the inner optimizer's groups."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups, {})
        self.base_optimizer = inner
        self.param_groups = inner.param_groups

    def step(self, closure=None):
        return self.base_optimizer.step(closure)


class Accelerated(torch.optim.Optimizer):
    """accelerate's: state and groups are shown as its own."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.optimizer = inner

    @property
    def state(self):
        return self.optimizer.state

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def defaults(self):
        return self.optimizer.defaults

    def step(self, closure=None):
        return self.optimizer.step(closure)


class ScheduleFree:
    """schedulefree's wrapper: no Optimizer at all."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.base = inner

    state = property(lambda self: self.base.state)
    param_groups = property(lambda self: self.base.param_groups)

    def step(self, closure=None):
        return self.base.step(closure)


class Container:
    """By hand: neither groups nor state."""

    def __init__(self, held) -> None:
        self.held = held

    def step(self):
        raise NotImplementedError


WRAPPERS = {
    "Lookahead": Lookahead,
    "SAM": SAM,
    "accelerate": Accelerated,
    "schedule-free": ScheduleFree,
    "a list": lambda inner: Container([inner]),
    "a dict of tuples": lambda inner: Container({"a": (inner,)}),
    "twice": lambda inner: Lookahead(SAM(inner)),
    "a container of a wrapper": lambda inner: Container([ScheduleFree(inner)]),
}


# ---- state that does not start at 0 -------------------------------------------------------------


class RMSpropTF(torch.optim.Optimizer):
    """As timm's: mean squares start at 1."""

    def __init__(self, params, lr=1e-2, alpha=0.9, eps=1e-10):
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["square_avg"] = torch.ones_like(p)
                square = state["square_avg"]
                square.add_(p.grad.square() - square, alpha=1 - group["alpha"])
                p.addcdiv_(p.grad, (square + group["eps"]).sqrt(), value=-group["lr"])


def parts(method=Static, wrap=lambda inner: inner):
    """A layer at BEFORE, SGD whose momentum stays as it is, and a rewirer."""
    layer = small_layer()
    optimizer = sgd(layer)
    optimizer.param_groups[0]["momentum"] = 1.0
    fill(optimizer, layer)
    return layer, optimizer, method(layer, wrap(optimizer))


def idle_step(optimizer, layer) -> None:
    layer.weight_values.grad = torch.zeros_like(layer.weight_values)
    optimizer.step()


def another(positions) -> dict:
    """The state_dict of a layer with weights at these positions."""
    layer = SparseLinear(6, 2, nnz=len(positions), bias=False)
    return place(layer, positions, torch.ones(len(positions))).state_dict()


def load(layer, positions) -> None:
    layer.load_state_dict(another(positions))


def replace(layer, positions) -> None:
    place(layer, positions, torch.ones(len(positions)))
