"""Index tensors of another dtype than int32 are refused by that, and by the layer's name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dsr_kernels import SparseConv2d, SparseLinear
from dsr_kernels.nn import functional
from dsr_kernels.rewiring import SET

DTYPES = (torch.int16, torch.int64, torch.uint8, torch.int8, torch.bool, torch.float32)
NAMES = ("crow_indices", "col_indices")


def model() -> nn.Sequential:
    made = nn.Sequential(SparseConv2d(2, 4, 3, nnz=8))
    made.state_dict()  # from which the layer learns its name
    return made


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_refused_when_it_is_set(name: str, dtype: torch.dtype) -> None:
    layer, x = model()[0], torch.ones(1, 2, 5, 5)
    before = layer(x)
    with pytest.raises(ValueError, match=f"layer '0': {name}: expected int32, got {dtype}"):
        setattr(layer, name, getattr(layer, name).to(dtype))
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_refused_at_the_next_use_where_it_came_otherwise(
    name: str, dtype: torch.dtype
) -> None:
    made = model()
    layer = made[0]
    rewirer = SET(made, torch.optim.SGD(made.parameters(), lr=0.1), every=1)
    layer._buffers[name] = getattr(layer, name).to(dtype)
    by_name = f"layer '0': {name}: expected int32, got {dtype}"
    for use in (layer.pattern, made.state_dict, lambda: copy.deepcopy(made), made.double):
        with pytest.raises(ValueError, match=by_name):
            use()
    with pytest.raises(ValueError, match=f"expected int32, got {dtype}"):
        rewirer.rewire()
    with pytest.raises(ValueError, match=rf"expected int32.* got .*{dtype}"):
        made(torch.ones(1, 2, 5, 5))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_function_refuses_it(name: str, dtype: torch.dtype) -> None:
    layer = SparseLinear(6, 4, nnz=8)
    pattern = {each: getattr(layer, each) for each in NAMES}
    pattern[name] = pattern[name].to(dtype)
    with pytest.raises(ValueError, match=rf"expected int32.* got .*{dtype}"):
        functional.sparse_linear(
            torch.ones(2, 6), layer.weight_values, None, *pattern.values(), (4, 6)
        )


def test_a_cast_of_a_whole_model_keeps_int32() -> None:
    made = model()
    with pytest.raises((TypeError, RuntimeError), match="floating point"):
        made.to(torch.int16)
    with pytest.raises((TypeError, RuntimeError), match="floating point"):
        made.type(torch.int16)
    made.double()
    assert made[0].crow_indices.dtype == made[0].col_indices.dtype == torch.int32
