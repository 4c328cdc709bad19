"""Compiled optimizers and whole compiled steps: nothing is compiled anew for a rewire."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.nn_cases import layer, states_equal
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from dsr_kernels import SparseLinear
from dsr_kernels.rewiring import DSR, SET

X = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),  # has no state whose identity would tell
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Backend:
    """Counts the graphs that are compiled, and how often they run."""

    def __init__(self) -> None:
        self.graphs = self.runs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.graphs += 1

        def run(*args):
            self.runs += 1
            return graph(*args)

        return run


def model() -> nn.Module:
    return nn.Sequential(
        layer(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Flatten(), SparseLinear(8 * 36, 5)
    )


@pytest.mark.parametrize(("name", "method"), [("momentum", DSR), ("SGD", SET)])
def test_a_whole_step_through_twenty_rewires(name, method):
    nets, graphs = [model()], []
    nets.append(copy.deepcopy(nets[0]))
    backend = CompileCounterWithBackend("aot_eager")
    for net, compiled in zip(nets, (True, False), strict=True):
        optimizer = OPTIMIZERS[name](net.parameters())
        rewirer = method(net, optimizer, every=1)

        def step(net=net, optimizer=optimizer):
            optimizer.zero_grad()
            net(X).square().mean().backward()
            optimizer.step()

        run = torch.compile(step, backend=backend) if compiled else step
        for _ in range(20):
            run()
            graphs.append(backend.frame_count)
            assert rewirer.step().pruned > 0
    assert graphs[0] > 0 and len(set(graphs)) == 1
    assert states_equal(*nets)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_compiled_optimizer_runs_eagerly_from_the_first_rewire_on(name):
    nets, backend = [model()], Backend()
    nets.append(copy.deepcopy(nets[0]))
    for net in nets:
        optimizer = OPTIMIZERS[name](net.parameters())
        rewirer = DSR(net, optimizer, every=2)
        compiled = torch.compile(optimizer.step, backend=backend)
        for _ in range(7):
            stepped(net, optimizer, compiled if net is nets[0] else optimizer.step)
            rewirer.step()
    assert backend.runs == 2
    assert backend.graphs == (2 if name == "momentum" else 1)  # its first step is another
    if name != "Adam":  # compiled, it rounds differently
        assert states_equal(*nets)


def stepped(net: nn.Module, optimizer: torch.optim.Optimizer, step: Callable) -> None:
    optimizer.zero_grad()
    net(X).square().mean().backward()
    step()


def test_only_optimizers_of_rewired_layers_leave_compiled_code():
    sparse, fixed, dense = model(), model(), nn.Sequential(nn.Flatten(), nn.Linear(144, 5))
    backends, steps = [], []
    for net in (sparse, fixed, dense):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        backends.append(Backend())
        step = torch.compile(optimizer.step, backend=backends[-1])
        steps.append((net, optimizer, step))
    rewirer = DSR(sparse, steps[0][1], every=1)
    for _ in range(3):
        for each in steps:
            stepped(*each)
        rewirer.step()
    assert [backend.runs for backend in backends] == [1, 3, 3]
    assert [backend.graphs for backend in backends] == [1, 1, 1]


@pytest.mark.parametrize("name", ["SGD", "momentum"])
def test_a_reset_of_dynamo_changes_nothing(name):
    net, backend = model(), Backend()
    optimizer = OPTIMIZERS[name](net.parameters())
    rewirer = DSR(net, optimizer, every=1)
    compiled = torch.compile(optimizer.step, backend=backend)
    for step in range(4):
        stepped(net, optimizer, compiled)
        rewirer.step()
        if step == 1:
            torch._dynamo.reset()
    assert backend.runs == backend.graphs == 1


@pytest.mark.slow
def test_inductor_has_no_length_in_its_code():
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    rewirer, step = DSR(net, optimizer, every=1), torch.compile(optimizer.step)
    for _ in range(3):
        stepped(net, optimizer, step)
        rewirer.step()
