"""Tensors whose storage was freed or shrunk, as off-loading does, are refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dsr_kernels import fuse
from dsr_kernels.nn import SparseConv2d
from dsr_kernels.rewiring import SET

REFUSED = "memory does not hold what it stands for"
SIZES = (0, 8)  # bytes that are left


def layer() -> SparseConv2d:
    torch.manual_seed(0)
    return SparseConv2d(4, 8, 3, padding=1, nnz=60)


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(2, 4, 8, 8, dtype=dtype)


def free(tensor: Tensor, size: int) -> None:
    tensor.untyped_storage().resize_(size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("warm", [False, True], ids=["first call", "prepared call"])
@pytest.mark.parametrize("name", ["weight_values", "bias", "crow_indices", "col_indices"])
def test_a_forward_pass_refuses_what_is_freed_of_a_layer(name: str, warm: bool, size: int) -> None:
    conv, x = layer(), images()
    if warm:
        conv(x)
    free(getattr(conv, name), size)
    by_name = f"{name}.*" if name in ("weight_values", "bias") else ""
    for _ in range(2):
        with pytest.raises(TypeError, match=by_name + REFUSED):
            conv(x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["plain", "view", "channels_last", "bfloat16", "float16"])
def test_a_forward_pass_refuses_a_freed_input(kind: str, size: int) -> None:
    conv = layer()
    dtype = getattr(torch, kind) if "float" in kind else torch.float32
    x = torch.ones(4, 4, 8, 8)[2:] if kind == "view" else images(dtype)
    if kind == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    conv(x)
    free(x, size)
    for each in (conv, layer()):  # a prepared call, and a first one
        with pytest.raises(TypeError, match="input.*" + REFUSED):
            each(x)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", ["input", "weight_values", "gradient"])
def test_a_backward_pass_refuses_what_is_freed(what: str, size: int) -> None:
    conv, x = layer(), images().requires_grad_()
    y = conv(x)
    gradient = torch.ones_like(y)
    free({"input": x, "weight_values": conv.weight_values, "gradient": gradient}[what], size)
    with pytest.raises(TypeError, match=f"{what}.*" + REFUSED):
        y.backward(gradient)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("what", ["input", "values"])
def test_a_fused_model_refuses_what_is_freed(what: str, size: int) -> None:
    model = nn.Sequential(layer(), nn.BatchNorm2d(8), nn.ReLU(), SparseConv2d(8, 8, 1, nnz=20))
    fuse(model)
    x = images()
    model(x).sum().backward()
    free(x if what == "input" else model[3].weight_values, size)
    with pytest.raises(TypeError, match=REFUSED):
        model(x)


@pytest.mark.parametrize("size", SIZES)
def test_a_rewire_refuses_freed_optimizer_state(size: int) -> None:
    conv = layer()
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, momentum=0.9)
    conv(images()).sum().backward()
    optimizer.step()
    before = copy.deepcopy(conv.state_dict())
    free(optimizer.state[conv.weight_values]["momentum_buffer"], size)
    rewirer = SET(conv, optimizer, every=1)
    with pytest.raises(TypeError, match="optimizer state.*" + REFUSED):
        rewirer.rewire()
    assert all(map(torch.equal, before.values(), conv.state_dict().values()))
