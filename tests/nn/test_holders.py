"""Layers that a model holds beside its registered children."""

from __future__ import annotations

import weakref
from collections import deque, namedtuple
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dsr_kernels import SparseLinear, densify, sparsify

Pair = namedtuple("Pair", "layer name")


@dataclass(frozen=True)
class Frozen:
    layer: nn.Module


class Slotted:
    __slots__ = ("layer",)

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


# How a layer is held, and how it is found again.
HOLDS = {
    "list": (lambda m: [m], lambda held: held[0]),
    "tuple": (lambda m: (1, m), lambda held: held[1]),
    "named tuple": (lambda m: Pair(m, "x"), lambda held: held.layer),
    "dict": (lambda m: {"a": m}, lambda held: held["a"]),
    "key": (lambda m: {"a": 1, m: 2}, lambda held: list(held)[1]),
    "set": (lambda m: {m}, lambda held: next(iter(held))),
    "frozen set": (lambda m: frozenset([m]), lambda held: next(iter(held))),
    "deque": (lambda m: deque([m]), lambda held: held[0]),
    "nested": (lambda m: [{"a": (m,)}], lambda held: held[0]["a"][0]),
    "dataclass": (Frozen, lambda held: held.layer),
    "slots": (Slotted, lambda held: held.layer),
    "object": (lambda m: SimpleNamespace(layer=[m]), lambda held: held.layer[0]),
    "partial": (lambda m: partial(m, 1), lambda held: held.func),
    "partial's keyword": (lambda m: partial(print, file=m), lambda held: held.keywords["file"]),
    "unregistered module": (lambda m: [nn.Sequential(m)], lambda held: held[0][0]),
}
# Code that goes on with the old layer, and what refuses it.
CODE = {
    "method": (lambda m: m.forward, "a method at model.held"),
    "closure": (lambda m: lambda x: m(x), "a function at model.held"),
    "default": (lambda m: lambda x, layer=m: layer(x), "a function at model.held"),
    "list in a closure": (lambda m: (lambda held: lambda x: held[0](x))([m]), "a function at"),
    "weak reference": (weakref.ref, "a reference at model.held"),
    "method in a list": (lambda m: [m.forward], r"a method at model.held\[0\]"),
}


class Model(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.other = type(layer)(4, 4)


def converted(sparse: bool, model: nn.Module, inplace: bool) -> nn.Module:
    return (
        densify(model, inplace=inplace)
        if sparse
        else sparsify(model, 0.5, inplace=inplace, preset="all")
    )


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", HOLDS)
def test_a_layer_is_exchanged_wherever_it_is_held(kind, sparse, inplace):
    hold, find = HOLDS[kind]
    model = Model(SparseLinear(4, 4) if sparse else nn.Linear(4, 4))
    layer, held = model.layer, hold(model.layer)
    model.held = held
    model.other.held_too = [held]
    result = converted(sparse, model, inplace)
    assert (result is model) == inplace
    assert type(result.layer) is (nn.Linear if sparse else SparseLinear)
    assert find(result.held) is result.layer
    assert find(result.other.held_too[0]) is result.layer
    if not inplace:
        assert find(model.held) is model.layer is layer


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", CODE)
def test_a_layer_that_code_holds_is_refused(kind, sparse, inplace):
    hold, reason = CODE[kind]
    model = Model(SparseLinear(4, 4) if sparse else nn.Linear(4, 4))
    layer = model.layer
    model.held = hold(layer)
    if sparse:
        with pytest.raises(TypeError, match=f"layer: {reason}.* would go on with the old layer"):
            densify(model, inplace=inplace)
        assert isinstance(model.other, SparseLinear)
    else:
        with pytest.warns(UserWarning, match=f"layer: {reason}.* would go on with the old layer"):
            result = sparsify(model, 0.5, inplace=inplace, preset="all")
        assert isinstance(result.layer, nn.Linear)
        assert isinstance(result.other, SparseLinear)
    assert model.layer is layer


@pytest.mark.parametrize("sparse", [False, True])
def test_a_weight_held_elsewhere_is_refused(sparse):
    """A penalty on `self.decayed` would go on with the old weight."""
    model = Model(SparseLinear(4, 4) if sparse else nn.Linear(4, 4))
    model.decayed = [model.layer.weight_values if sparse else model.layer.weight]
    if sparse:
        with pytest.raises(TypeError, match=r"layer: its weight is also held at model.decayed\[0"):
            densify(model)
    else:
        with pytest.warns(UserWarning, match=r"layer: its weight is also held at model.decayed"):
            sparsify(model, preset="all")


class ByFunction(nn.Module):
    """Its function closes over itself, so that a copy's goes on with the original."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.run = lambda x: self.layer(x)


def test_a_function_over_the_model_follows_in_place_only():
    model, x = ByFunction(), torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"a function at model\.run holds it"):
        sparsify(model, preset="all")
    sparsify(model, inplace=True, preset="all")
    assert torch.equal(model.run(x), model.layer(x))
    assert isinstance(model.layer, SparseLinear)


def test_a_hook_over_the_model_does_not_stand_in_the_way():
    model, seen = Model(nn.Linear(4, 4)), []
    model.register_forward_hook(lambda *args: seen.append(model))
    assert isinstance(sparsify(model, preset="all").layer, SparseLinear)


def test_an_optimizer_on_the_model_is_not_followed():
    model = Model(nn.Linear(4, 4))
    model.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert isinstance(sparsify(model, preset="all").layer, SparseLinear)


class DistributedDataParallel(nn.Module):
    """By name: torch's wants a process group."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_wrapper_that_holds_the_parameters_comes_last():
    with pytest.raises(ValueError, match=r"module.0: DistributedDataParallel holds its parameters"):
        sparsify(DistributedDataParallel(nn.Sequential(nn.Linear(4, 4))), preset="all")
    with pytest.raises(TypeError, match=r"module.0: DistributedDataParallel holds its parameters"):
        densify(DistributedDataParallel(nn.Sequential(SparseLinear(4, 4))))
