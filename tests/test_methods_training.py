"""Every method in training: budgets, resuming, averages, failures half way through."""

from __future__ import annotations

import copy

import pytest
import torch
from method_cases import entries
from method_oracles import gmp_count
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
    "dsr by size": (DSR, {"prune_fraction": 0.2, "threshold": "exact", "allocation": "N",
                          "every": 3}),
    "set": (SET, {"fraction": 0.2, "every": 3}),
    "rigl": (RigL, {"fraction": 0.3, "every": 3, "length": 40}),
    "snfs": (SNFS, {"fraction": 0.3, "every": 3, "stop": 27}),
    "deepr": (DeepR, {"eta": 0.5, "l1": 1e-3, "temperature": 1e-4, "final_temperature": 1e-8,
                      "length": 40, "report_every": 4}),
    "gmp": (GMP, PRUNING),
    "gmp global": (GMP, PRUNING | {"scope": "global", "density_schedule": "exponential"}),
}  # fmt: skip
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
        self.model = dsr_kernels.sparsify(dense, sparsity, exclude=["stem"])
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_budgets_hold_and_a_resumed_run_is_the_same(method, optimizer):
    training = Training(method, optimizer)
    first = [layer.nnz for layer in training.layers]
    last = [layer.numel // 5 for layer in training.layers]
    saved, wanted = None, first
    for step in training.run(0, ITERATIONS):
        counts = [layer.nnz for layer in training.layers]
        if method == "gmp" and training.reports[-1]:
            pairs = zip(first, last, strict=True)
            wanted = [gmp_count(*pair, 2, 24, step, "cubic") for pair in pairs]
        if method == "gmp global" and training.reports[-1]:
            wanted = [gmp_count(sum(first), sum(last), 2, 24, step, "exponential")]
        assert sum(counts) == sum(wanted)
        if method in ("set", "rigl", "deepr", "gmp"):
            assert counts == wanted
        for layer in training.layers:
            layer.topology.validate()
        if step == 14:  # the next iteration is followed by a rewire
            saved = copy.deepcopy([part.state_dict() for part in training.parts])
    assert sum(r is not None for r in training.reports) >= 7
    if method.startswith("gmp"):
        assert sum(layer.nnz for layer in training.layers) == sum(last)
    else:
        assert any(row.pruned for r in training.reports if r for row in r[2])

    resumed = Training(method, optimizer, seed=1)  # all of it must come from the state
    for part, state in zip(resumed.parts, saved, strict=True):
        part.load_state_dict(state)
    assert list(resumed.run(14, ITERATIONS)) == list(range(15, ITERATIONS + 1))
    assert resumed.reports == training.reports[14:]
    assert_same(resumed.state(), training.state())


@pytest.mark.parametrize("method", METHODS)
def test_an_average_follows(method):
    training = Training(method, "momentum")
    list(training.run(0, 14))
    copies = [module for _, module in named_sparse_modules(training.average)]
    training.optimizer.zero_grad()
    training.iterate(14)
    old = [(entries(a), entries(b)) for a, b in zip(training.layers, copies, strict=True)]
    training.rewirer.step()
    new = [(entries(a), entries(b)) for a, b in zip(training.layers, copies, strict=True)]
    for (before, averaged), (after, follows) in zip(old, new, strict=True):
        assert list(after) == list(follows)
        assert all(follows[p] == averaged.get(p, (0.0,)) for p in follows)
        assert set(before) == set(averaged)
    assert any(set(a[0]) != set(b[0]) for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_a_failure_half_way_through_is_taken_back(method):
    training = Training(method, "adam")
    list(training.run(0, 14))
    training.optimizer.zero_grad()
    training.iterate(14)
    module = training.layers[-1]
    replace, calls = module.replace_topology, []

    def fail_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("out of luck")
        return replace(*args, **kwargs)

    before = training.state()
    module.replace_topology = fail_once
    with pytest.raises(RuntimeError, match="out of luck"):
        training.rewirer.step()
    assert_same(training.state(), before)
    untroubled = Training(method, "adam")
    for one, start in ((training, 15), (untroubled, 0)):
        if start:
            one.rewirer.step()
        list(one.run(start, 16))
    assert_same(training.state(), untroubled.state())


@pytest.mark.parametrize("method", METHODS)
def test_states_travel_and_foreign_ones_are_refused(method, tmp_path):
    training = Training(method, "momentum")
    list(training.run(0, 7))
    state = training.rewirer.state_dict()
    torch.save(state, tmp_path / "rewirer.pt")
    assert_same(torch.load(tmp_path / "rewirer.pt", weights_only=True), state)
    for name in METHODS:
        other = Training(name, "momentum").rewirer
        before = other.state_dict()
        if type(other) is type(training.rewirer):
            continue
        with pytest.raises(ValueError, match="state_dict: expected method"):
            other.load_state_dict(state)
        assert_same(other.state_dict(), before)
    for key, message in (("version", "expected version 2"), ("iteration", "iteration: expected")):
        with pytest.raises(ValueError, match=message):
            training.rewirer.load_state_dict({**state, "seed": 5, key: -1})
        assert_same(training.rewirer.state_dict(), state)
