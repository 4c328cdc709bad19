"""What cannot be rewired is refused by the layer's name, and nothing has changed; nor has training
after a rewire under torch.inference_mode.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from dsr_kernels import SparseLinear
from dsr_kernels.rewiring import DSR, SET, DeepR, RigL


def model_and_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(SparseLinear(8, 6, nnz=12), nn.ReLU(), SparseLinear(6, 4, nnz=9))
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(5, 8)).square().sum().backward()
    optimizer.step()


def test_values_that_wrap_other_tensors_are_refused_by_name() -> None:
    model, _ = model_and_optimizer()
    plain = model[2].weight_values.detach()
    model[2].weight_values = nn.Parameter(TwoTensor(plain.clone(), plain.clone()))
    rewirer = SET(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = model[0].pattern()
    with pytest.raises(ValueError, match=r"layer '2': .* got a TwoTensor on cpu whose memory"):
        rewirer.rewire()
    assert model[0].pattern() is before


def test_state_that_wraps_other_tensors_is_refused_by_name() -> None:
    model, optimizer = model_and_optimizer()
    train(model, optimizer)
    rewirer = SET(model, optimizer)
    state = optimizer.state[model[0].weight_values]
    state["momentum_buffer"] = TwoTensor(state["momentum_buffer"], state["momentum_buffer"])
    before = model[0].pattern()
    with pytest.raises(ValueError, match="layer '0'"):
        rewirer.rewire()
    assert model[0].pattern() is before


def test_index_tensors_that_another_has_written_to_are_refused_by_name() -> None:
    model, optimizer = model_and_optimizer()
    rewirer = SET(model, optimizer)
    model[2].col_indices.data.copy_(SparseLinear(6, 4, nnz=9).col_indices)
    with pytest.raises(RuntimeError, match="layer '2': something else than the layer has written"):
        rewirer.rewire()


@pytest.mark.parametrize("method", [DSR, SET, RigL, DeepR])
def test_a_rewire_under_inference_mode_leaves_a_model_that_trains(method) -> None:
    model, optimizer = model_and_optimizer()
    more = {DeepR: {"length": 9}, RigL: {"length": 9, "every": 1}}.get(method, {"every": 1})
    rewirer = method(model, optimizer, **more)
    for _ in range(3):
        train(model, optimizer)
        with torch.inference_mode():
            rewirer.step()
    train(model, optimizer)
    tensors = [*model.state_dict(keep_vars=True).values()]
    tensors += [t for state in optimizer.state.values() for t in state.values()]
    assert not any(isinstance(t, torch.Tensor) and t.is_inference() for t in tensors)
