"""200 iterations with rewires: fused and unfused go the same way."""

from __future__ import annotations

import pytest
import torch
from helpers.fused_models import conv3x3, sparse_pair
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.models.layers import LayerFactory
from dsr_kernels.models.wide_resnet import WideBlock
from dsr_kernels.rewiring import DSR, SET, RigL

ITERATIONS = 200


def small() -> nn.Module:
    layers = LayerFactory(False, 0.0, None, None, None)
    blocks = WideBlock(layers, 4, 6, 2), WideBlock(layers, 6, 6, 1)
    model = nn.Sequential(conv3x3(3, 4), *blocks, nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, 0, 0.3)
    return nn.Sequential(model, nn.Linear(6 * 16, 3))


def rewirer(method: str, model: nn.Module, optimizer: torch.optim.Optimizer):
    if method == "dsr":
        return DSR(model, optimizer, prune_count=20, initial_threshold=1e-2, every=10)
    return RigL(model, optimizer, every=10, stop=150, fraction=0.3)


def train(model: nn.Module, method: str) -> list[torch.Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    moves = rewirer(method, model, optimizer)
    losses, rewires = [], 0
    for i in range(ITERATIONS):
        generator = torch.Generator().manual_seed(i)
        x = torch.randn(6, 3, 8, 8, dtype=torch.float64, generator=generator)
        y = torch.randint(3, (6,), generator=generator)
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewires += moves.step() is not None
        losses.append(loss.detach())
    assert rewires >= 10
    return losses


@pytest.mark.parametrize("method", ["dsr", "rigl"])
def test_two_hundred_iterations(method):
    torch.manual_seed(0)
    fused, plain = sparse_pair(small())
    found, expected = train(fused, method), train(plain, method)
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), rtol=1e-6, atol=1e-8)
    state = plain.state_dict()
    for name, tensor in fused.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-5, atol=1e-7, msg=name)


def test_an_average_follows_a_fused_model():
    torch.manual_seed(0)
    outputs = []
    for model in sparse_pair(small()):
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        moves = DSR(model, optimizer, prune_count=20, initial_threshold=1e-2, every=2)
        average = AveragedModel(model, avg_fn=lambda old, new, _: 0.9 * old + 0.1 * new)
        moves.follow(average)
        for i in range(6):
            x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(i)).double()
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            moves.step()
            average.update_parameters(model)
        outputs.append(average.eval()(x))
    torch.testing.assert_close(*outputs, rtol=1e-8, atol=1e-8)


@pytest.mark.filterwarnings("ignore")
def test_distributed_data_parallel_around_a_fused_model(tmp_path):
    dist = torch.distributed
    dist.init_process_group("gloo", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        gradients = []
        for model in sparse_pair(small()):
            wrapped = DistributedDataParallel(model)
            moves = SET(wrapped, torch.optim.SGD(wrapped.parameters(), 0.05), every=1)
            for i in range(3):
                wrapped(torch.ones(4, 3, 8, 8).double() * i).square().sum().backward()
                moves.step()
            gradients.append([p.grad for p in model.parameters() if p.dim() == 1])
        torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)
    finally:
        dist.destroy_process_group()
