"""Whole training steps of WRN-28-2: zero_grad, forward, backward, SGD with Nesterov momentum.

Run with `make bench`. Also records what weights, indices and optimizer state take.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from alternating import compare
from torch import nn
from torch.nn import functional as F

from dsr_kernels.models.wide_resnet import wrn_28

BATCH = 128


def training_step(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor
) -> tuple[Callable[[], None], torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step, optimizer


def bytes_held(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Parameters, the indices of sparse layers, and optimizer state."""
    held = [*model.parameters()]
    held += [b for name, b in model.named_buffers() if name.endswith("_indices")]
    held += [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    return sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95])
def test_wrn_28_2(benchmark, sparsity: float) -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    last = {"memory_format": torch.channels_last}
    sparse = wrn_28(2, sparsity)
    dense, dense_last = wrn_28(2, sparse=False), wrn_28(2, sparse=False).to(**last)
    sparse_step, sparse_optimizer = training_step(sparse, images, labels)
    dense_step, dense_optimizer = training_step(dense, images, labels)
    last_step, _ = training_step(dense_last, images.to(**last), labels)
    runs = {"sparse": sparse_step, "dense": dense_step, "dense channels_last": last_step}
    compare(benchmark, runs, rounds=9)
    info = benchmark.extra_info
    for name in runs:
        info[f"{name} images/s"] = round(1e3 * BATCH / info[f"{name} ms"], 1)
    info["sparse bytes"] = bytes_held(sparse, sparse_optimizer)
    info["dense bytes"] = bytes_held(dense, dense_optimizer)
    assert info["sparse bytes"] < info["dense bytes"]
    assert all(torch.isfinite(p).all() for p in sparse.parameters())
