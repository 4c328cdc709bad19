"""A copy of a training goes on as the original does, bit for bit: copy.deepcopy and pickle."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from helpers.method_training import METHODS, OPTIMIZERS, Training, assert_same
from torch import nn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.ops import watch
from dsr_kernels.rewiring import Static
from dsr_kernels.rewiring.exploration import Exploration

COPY = {"deepcopy": copy.deepcopy, "pickle": lambda parts: pickle.loads(pickle.dumps(parts))}


class Small:
    """Layers of which one is used twice, under a method that rewires after every iteration."""

    def __init__(self, method: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            SparseLinear(12, 8, nnz=40), nn.Tanh(), SparseLinear(8, 8, nnz=24)
        )
        self.model.append(self.model[2])
        self.optimizer = OPTIMIZERS["momentum"](self.model.parameters())
        make, arguments = METHODS[method]
        often = {} if method == "deepr" else {"every": 1}
        self.rewirer = make(self.model, self.optimizer, **arguments | often)

    def backward(self, i: int) -> None:
        generator = torch.Generator().manual_seed(i)
        self.optimizer.zero_grad()
        self.model(torch.randn(5, 12, generator=generator)).square().sum().backward()

    def finish(self) -> tuple:
        self.optimizer.step()
        report = self.rewirer.step()
        return report and (report.step, report.pruned, report.layers)

    def copied(self, how: str) -> Small:
        """torch copies no gradients of parameters, so they are carried over."""
        new = copy.copy(self)
        parts = self.model, self.optimizer, self.rewirer
        new.model, new.optimizer, new.rewirer = COPY[how](parts)
        for old, twin in zip(self.model.parameters(), new.model.parameters(), strict=True):
            twin.grad = None if old.grad is None else old.grad.clone()
        return new

    def state(self):
        return copy.deepcopy(
            [part.state_dict() for part in (self.model, self.optimizer, self.rewirer)]
        )


def assert_both_go_on_alike(original: Small, twin: Small, reports: int = 4) -> None:
    for i in range(10, 10 + reports):
        found = []
        for one in (twin, original):  # one after the other: each sees its own gradients alone
            one.backward(i)
            found.append(one.finish())
        assert found[0] == found[1]
        assert_same(twin.state(), original.state())


@pytest.mark.parametrize("how", COPY)
@pytest.mark.parametrize("method", METHODS)
def test_between_a_backward_pass_and_the_rewire(method, how):
    original = Small(method)
    for i in range(3):
        original.backward(i)
        original.finish()
    original.backward(3)
    twin = original.copied(how)
    assert twin.rewirer._layers[0].module is twin.model[0]
    rewires = original.rewirer.rewires
    assert twin.finish() == original.finish()
    assert_same(twin.state(), original.state())
    assert_both_go_on_alike(original, twin)
    assert original.rewirer.rewires > rewires


@pytest.mark.parametrize("how", COPY)
@pytest.mark.parametrize("method", ["rigl", "snfs", "deepr"])
def test_between_a_forward_and_a_backward_pass(method, how):
    original = Small(method)
    original.backward(0)
    original.finish()
    loss = original.model(torch.ones(5, 12)).sum()
    twin = original.copied(how)
    del loss
    original.rewirer._iteration_done()  # forgets the forward pass, as the twin has no graph of it
    twin.rewirer._iteration_done()
    assert_both_go_on_alike(original, twin)


@pytest.mark.parametrize("method", ["rigl", "deepr"])
def test_a_copy_of_a_rewirer_alone_has_a_model_of_its_own(method):
    original = Small(method)
    original.backward(0)
    before = original.state()
    alone = copy.deepcopy(original.rewirer)
    assert alone._layers[0].module is not original.model[0]
    alone.rewire()  # which looks whether its optimizer holds its layers
    assert alone.rewires == 1
    assert_same(before, original.state())


def test_static_and_a_resnet_with_its_average_are_copied():
    model = nn.Sequential(SparseLinear(4, 4))
    parts = copy.deepcopy((model, Static(model)))
    assert parts[1]._layers[0].module is parts[0][0]
    original = Training("rigl", "adam")
    list(original.run(0, 2))
    twin = copy.deepcopy(original)
    for one in (twin, original):
        list(one.run(2, 8))
    assert_same(twin.state(), original.state())
    assert twin.average is not original.average


@pytest.mark.parametrize("how", COPY)
def test_what_was_explored_is_copied(how):
    original = Small("set")
    explored = Exploration(original.model)
    model, rewirer, twin = COPY[how]((original.model, original.rewirer, explored))
    for one in (original.rewirer, rewirer):
        one.rewire()
    for one in (explored, twin):
        one.update()
    at_first = (40 + 24) / (96 + 64)  # of 12 x 8 and 8 x 8 weights
    assert twin.rate == explored.rate > at_first and rewirer._layers[0].module is model[0]


def test_a_pickle_of_another_process_does_not_take_its_backward_pass_for_one_of_this():
    """A fresh process numbers backward passes from 0 again."""
    original = Small("rigl")
    original.backward(0)
    state = original.rewirer._watch.__getstate__()
    assert [seen.backward for seen in state["_seen"].values()] == [-1, -1]
    assert min(seen.backward for seen in original.rewirer._watch._seen.values()) >= 0


def test_a_copy_that_dies_leaves_no_watcher():
    original = Small("rigl")
    gc.collect()
    before = len(watch.watchers)
    twin = copy.deepcopy((original.model, original.optimizer, original.rewirer))
    assert len(watch.watchers) == before + 1
    del twin
    gc.collect()
    assert len(watch.watchers) == before
