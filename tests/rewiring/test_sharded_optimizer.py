"""ZeroRedundancyOptimizer: each process holds the state of some parameters only."""

from __future__ import annotations

import pytest
import torch
import torch.multiprocessing
from helpers.optimizer_cases import AFTER, MOMENTUM, MOVED, Planned, fill, momentum, small_layer
from torch import distributed, nn

zero = pytest.importorskip("torch.distributed.optim").ZeroRedundancyOptimizer
if not (distributed.is_available() and distributed.is_gloo_available()):
    pytest.skip("torch without gloo", allow_module_level=True)


def train(rank: int, file: str) -> None:
    """One rewire and one step of two layers, whose state is on different ranks."""
    distributed.init_process_group("gloo", f"file://{file}", rank=rank, world_size=2)
    try:
        model = nn.Sequential(small_layer(), small_layer())
        optimizer = zero(model.parameters(), torch.optim.SGD, lr=0.5, momentum=1.0)
        own = [layer for layer in model if optimizer._param_to_rank[layer.weight_values] == rank]
        assert len(own) == 1, "each rank holds one layer's state"
        fill(optimizer.optim, own[0])
        Planned(model, optimizer).rewire()
        before = [layer.weight_values.detach().clone() for layer in model]
        for layer in model:
            layer.weight_values.grad = torch.zeros(6, 1)
        optimizer.step()
        assert momentum(optimizer.optim, own[0]) == MOVED
        for layer, values in zip(model, before, strict=True):  # also what the other one has moved
            assert layer.topology.linear_positions().tolist() == AFTER
            moved = values - 0.5 * torch.tensor(MOVED)[:, None]
            torch.testing.assert_close(layer.weight_values.detach(), moved)
        optimizer.consolidate_state_dict(to=0)
        if rank == 0:
            state = optimizer.state_dict()["state"]
            found = [state[i]["momentum_buffer"].flatten().tolist() for i in range(2)]
            assert found == [MOVED, MOVED] and MOVED != MOMENTUM
        Planned(model, optimizer)  # what was gathered to be saved is nobody's state
    finally:
        distributed.destroy_process_group()


def test_the_state_of_each_process_moves(tmp_path):
    file = str(tmp_path / "meeting")
    other = torch.multiprocessing.get_context("spawn").Process(target=train, args=(1, file))
    other.start()
    train(0, file)
    other.join(60)
    assert other.exitcode == 0
