"""Growth by gradient over several processes: what is sent, when, and of which layers."""

from __future__ import annotations

import pytest
import torch
from helpers.parallel_training import (
    assert_as_alone,
    assert_equal,
    batch,
    make,
    make_model,
    sgd,
    state_of,
    step,
)
from helpers.team import device
from torch import nn

import dsr_kernels
from dsr_kernels.backends.conv_shape import ConvShape
from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.rewiring import dense_gradient
from dsr_kernels.rewiring.dense_gradient import largest_gradients
from dsr_kernels.rewiring.layers import find_layers
from dsr_kernels.rewiring.processes import Processes

CHUNK = 80  # weights of a block: two rows of 36 and 32


def in_blocks(rank: int, size: int):
    """Trains with small blocks; the sizes of what was averaged, by iteration."""
    sent: list[list[int]] = []
    mean = Processes.mean_

    def counting(self, tensor):
        sent[-1].append(tensor.numel())
        mean(self, tensor)

    model = make_model()
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = sgd(model)
    rewirer = make("rigl", wrapped, optimizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense_gradient, "ROW_CHUNK", CHUNK)
        patch.setattr(Processes, "mean_", counting)
        for number in range(10):
            sent.append([])
            step(wrapped, optimizer, number, rank, size)
            rewirer.step()
    return state_of(model), sent


def test_blocks_are_averaged_at_rewires_alone(two):
    (state, sent), (other, same) = two.run(in_blocks)
    assert_equal(state, other, exactly=True)
    assert_equal(state, in_blocks(0, 1)[0])
    assert sent == same
    for number, sizes in enumerate(sent):
        assert bool(sizes) == ((number + 1) % 5 == 0)
        assert max(sizes, default=0) <= CHUNK
        # All weights of the three sparse layers, each once.
        assert sum(sizes) in (0, 8 * 2 * 9 + 8 * 4 * 9 + 12 * 32)


def other_layouts(rank: int, size: int):
    """Images that lie channels last in one process, so that its gradients do."""
    model = make_model()
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = sgd(model)
    rewirer = make("rigl", wrapped, optimizer, every=2)
    for number in range(10):
        x, y = batch(number, rank, size)
        x = x.to(memory_format=torch.channels_last) if rank == 1 else x
        optimizer.zero_grad()
        (wrapped(x) - y).square().mean().backward()
        optimizer.step()
        rewirer.step()
    return state_of(model)


def test_processes_with_other_memory_formats(two):
    assert_as_alone(two, other_layouts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("used", [True, False])
def test_blocks_have_one_layout_and_type_in_all_processes(dtype, used):
    """Whether a process has used the layer, and whatever autocast computed in."""
    layer = SparseConv2d(8, 6, 3, padding=1, nnz=100, dtype=dtype)
    model = nn.Sequential(layer)
    x, grad = torch.randn(2, 8, 5, 5), torch.randn(2, 6, 5, 5)
    x, grad = (t.to(memory_format=torch.channels_last) for t in (x, grad))
    shape = ConvShape((6, 8, 3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1)
    seen = []

    def combine(gradient):
        seen.append((gradient.shape, gradient.stride(), gradient.dtype))

    uses = [(x.bfloat16(), grad.bfloat16(), shape)] if used else []
    largest_gradients(find_layers(model)[0], 5, uses, 1, combine)
    assert seen == [((6, 72), (72, 1), dtype)]


class Twice(nn.Module):
    """A layer that is used twice in a pass, and blocks of output channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = SparseConv2d(2, 2, 3, padding=1, nnz=18, dtype=torch.float64)
        self.last = SparseLinear(72, 12, nnz=200, block_size=4, dtype=torch.float64)
        self.head = nn.Linear(12, 3, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.last(self.first(self.first(x).relu()).flatten(1)))


def twice(rank: int, size: int):
    torch.manual_seed(0)
    model = Twice().to(device())
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = sgd(model)
    rewirer = make("rigl", wrapped, optimizer, every=2)
    for number in range(12):
        step(wrapped, optimizer, number, rank, size)
        rewirer.step()
    return state_of(model)


def test_shared_layers_and_blocks_of_channels(two):
    assert_as_alone(two, twice)


def fused(rank: int, size: int, fuses: bool):
    """Batch norm and ReLU inside the convolutions, whose memory a step leaves to the next."""
    torch.manual_seed(0)
    model = nn.Sequential(
        SparseConv2d(2, 16, 3, sparsity=0.5, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        SparseConv2d(16, 16, 3, sparsity=0.8, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 3),
    ).to(device())
    if fuses:
        dsr_kernels.fuse(model)
    wrapped = DistributedDataParallel(model)
    optimizer = sgd(model)
    rewirer = make("rigl", wrapped, optimizer, every=3)
    for number in range(6):
        step(wrapped, optimizer, number, rank, size)
        rewirer.step()
    return {key: value for key, value in state_of(model).items() if "running" not in key}


def test_a_fused_model(two):
    states = two.run(fused, True)
    assert_equal(*states, exactly=True)
    for key, value in two.run(fused, False)[0].items():
        torch.testing.assert_close(states[0][key], value, rtol=1e-3, atol=1e-4)
