"""Sparse layers with optimizers that have made their state, and how a step refuses it."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.optimizer_cases import BEFORE, place
from torch import nn

from dsr_kernels.nn import SparseLinear

SIZES = {"a": 60, "b": 90}


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, fused=True)


def sgd(parameters, **options):
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, **options)


def two(order: str) -> nn.ModuleDict:
    return nn.ModuleDict({name: SparseLinear(16, 16, nnz=SIZES[name]) for name in order})


def at(positions) -> SparseLinear:
    layer = SparseLinear(6, 2, nnz=len(positions), bias=False)
    return place(layer, positions, torch.ones(len(positions)))


def step(model, optimizer):
    def closure():
        return sum(p.square().sum() for p in model.parameters())

    optimizer.zero_grad()
    closure().backward()
    optimizer.step(closure if isinstance(optimizer, torch.optim.LBFGS) else None)


def live(make=sgd, steps=3):
    """A layer at BEFORE and an optimizer that has made steps."""
    layer = at(BEFORE)
    optimizer = make(layer.parameters())
    for _ in range(steps):
        step(layer, optimizer)
    return layer, optimizer


def refused(model, optimizer, message):
    """Each time, and nothing has changed."""
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            step(model, optimizer)
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
