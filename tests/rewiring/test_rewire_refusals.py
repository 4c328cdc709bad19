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
from dsr_kernels.rewiring.layers import find_layers
from dsr_kernels.rewiring.plan import open_plan


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


def shorter(index: torch.Tensor) -> torch.Tensor:
    return index[: index.numel() // 2].clone()


def far_away(index: torch.Tensor) -> torch.Tensor:
    return index.index_fill(0, torch.tensor([1]), 10**6)


def backwards(index: torch.Tensor) -> torch.Tensor:
    return index.index_fill(0, torch.tensor([1]), -7)


def apart(index: torch.Tensor) -> torch.Tensor:
    return torch.stack([index, index], 1)[:, 0]


REPLACED = {
    "shorter": (shorter, "expected|runs? from 0"),
    "int64": (torch.Tensor.long, "expected int32, got torch.int64"),
    "too large": (far_away, "expected|decrease"),
    "negative": (backwards, "expected|decrease"),
    "strided": (apart, "expected contiguous"),
}


@pytest.mark.parametrize("name", ["crow_indices", "col_indices"])
@pytest.mark.parametrize("what", REPLACED)
@pytest.mark.parametrize("method", [DSR, SET, RigL, DeepR])
def test_replaced_index_tensors_are_refused_and_nothing_changes(method, what, name) -> None:
    """As the forward pass refuses them; the engine would read or write beyond their memory."""
    model, optimizer = model_and_optimizer()
    rewirer = method(model, optimizer, **({} if method in (DSR, SET) else {"length": 9}))
    train(model, optimizer)
    change, message = REPLACED[what]
    replaced = change(getattr(model[2], name))
    model[2]._buffers[name] = replaced
    values = [layer.weight_values.clone() for layer in (model[0], model[2])]
    before = model[0].pattern()
    with pytest.raises(ValueError, match=f"layer '2': .*({message})"):
        rewirer.rewire()
    assert model[0].pattern() is before and getattr(model[2], name) is replaced
    for layer, held in zip((model[0], model[2]), values, strict=True):
        assert torch.equal(layer.weight_values, held)


def test_the_engine_itself_refuses_tensors_that_are_no_pattern() -> None:
    """Whoever calls it, whatever was checked before."""
    model, _ = model_and_optimizer()
    for name, index in (
        ("crow_indices", model[0].crow_indices[:3]),
        ("crow_indices", model[0].crow_indices.long()),
        ("col_indices", model[0].col_indices.long()),
    ):
        (layer,) = find_layers(nn.Sequential(SparseLinear(8, 6, nnz=12)))
        layer.module._buffers[name] = index
        with pytest.raises(ValueError, match=f"layer '0': expected {name[:4].rstrip('_')}_indices"):
            open_plan([layer], [torch.ones(12)])


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
