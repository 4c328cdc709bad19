"""Optimizer state that cannot follow a rewire is refused, not left behind."""

from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import nn

from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR


def trained(optimizer_type):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), SparseLinear(8, 4, sparsity=0.5))
    optimizer = optimizer_type(model.parameters())
    rewirer = DSR(model, optimizer, prune_fraction=0.2)
    rewirer.rewire()  # nothing to lose before the first step
    x = torch.randn(5, 6)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    return model, rewirer, optimizer


@pytest.mark.parametrize("container", [list, tuple, deque, lambda t: {"history": list(t)}])
def test_optimizer_state_in_containers_is_refused(container):
    model, rewirer, optimizer = trained(torch.optim.Adam)
    state = optimizer.state[model[1].weight_values]
    state["history"] = container([torch.zeros(model[1].nnz)])
    with pytest.raises(ValueError, match=r"state 'history' of layer '1' is a \w+ of tensors"):
        rewirer.rewire()
    state["history"] = container([])
    state["counts"] = [1, torch.tensor(2)]  # scalars belong to no entry
    assert rewirer.rewire() is not None
