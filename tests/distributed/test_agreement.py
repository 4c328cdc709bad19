"""Processes compare what decides a rewire, and all of them stop where it differs."""

from __future__ import annotations

import copy
import datetime
import math

import pytest
import torch
import torch.distributed as dist
from helpers.parallel_training import (
    Training,
    batch,
    make,
    make_model,
    message_of,
    sgd,
    state_of,
    step,
    trained,
)
from helpers.team import device
from torch import nn

from dsr_kernels.distributed import DistributedDataParallel
from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import RigL


def refused(training: Training) -> str:
    """What a rewire says that changes nothing."""
    model, _, optimizer, rewirer = training
    before = state_of(model), copy.deepcopy(optimizer.state_dict()["state"]), rewirer.state_dict()
    message = message_of(rewirer.rewire)
    after = state_of(model), optimizer.state_dict()["state"]
    torch.testing.assert_close(after, before[:2], rtol=0, atol=0)
    assert rewirer.state_dict() == before[2]
    return message


def change_one_value(rank: int, size: int, value: float):
    training = trained(rank, size)
    with torch.no_grad():
        training.model[4].weight_values[2] = value if rank == 1 else abs(value)
    return refused(training)


@pytest.mark.parametrize("value", [-0.0, -1e-30, -3.0])
def test_one_other_value_is_found(two, value):
    """Also a zero of the other sign."""
    for message in two.run(change_one_value, value):
        assert message.startswith(
            "rewire: layer '4': rank 1 has other values than rank 0; nothing was rewired. Usual "
            "causes: "
        )


def change_on_the_last(rank: int, size: int):
    training = trained(rank, size, "dsr")
    with torch.no_grad():
        training.model[2].weight_values += rank >= 2
    return refused(training)


def test_the_first_rank_that_differs_is_named(four):
    for message in four.run(change_on_the_last):
        assert "layer '2': rank 2 has other values than rank 0" in message


def change_a_pattern(rank: int, size: int):
    training = trained(rank, size, "dsr")
    if rank == 1:
        other = SparseLinear(
            32, 12, nnz=training.model[4].nnz, dtype=torch.float64, device=device()
        )
        values = training.model[4].weight_values.detach()
        training.model[4].replace_topology(other.crow_indices, other.col_indices, values)
    # Not `refused`: the optimizer's state moves to the pattern that was given, whatever follows.
    return message_of(training.rewirer.rewire)


def test_another_pattern_is_found(two):
    for message in two.run(change_a_pattern):
        assert "layer '4': rank 1 has other positions than rank 0" in message


def other_settings(rank: int, size: int, which: str):
    seed = rank if which == "seed" else 0
    options = {"every": 5 + rank} if which == "schedule" else {}
    training = trained(rank, size, "set", seed, **options)
    if which == "iteration" and rank:
        training.rewirer.iteration = 4
    return message_of(training.rewirer.step)


@pytest.mark.parametrize("which", ["seed", "schedule", "iteration"])
def test_the_first_step_compares_settings(two, which):
    """Before one process rewires and the other goes on, and both wait."""
    for message in two.run(other_settings, which):
        assert f"rewire: expected the same {which} in all processes, got " in message
        assert "on rank 0 and" in message and "on rank 1; nothing was rewired" in message


def frozen(rank: int, size: int):
    training = trained(rank, size)
    training.model[2].weight_values.requires_grad_(rank == 0)
    return refused(training)


def test_a_layer_that_one_process_has_frozen_is_named(two):
    for message in two.run(frozen):
        assert "layer '2' trains on rank 0, but not in the same place on rank 1" in message


def cannot(rank: int, size: int):
    """One process alone has a reason not to rewire."""
    training = trained(rank, size)
    if rank == 1:
        training.model[4].share_memory()
    message = message_of(training.rewirer.rewire, (ValueError, RuntimeError))
    return message, training.rewirer.rewires


def test_what_one_process_refuses_all_do(two):
    if device().type == "cuda":
        pytest.skip("memory of a GPU is not shared so")
    (first, _), (second, rewires) = two.run(cannot)
    assert first.startswith("rewire: nothing was rewired, for rank 1 cannot: layer '4': its tens")
    assert second.startswith("layer '4': its tensors are in shared memory")
    assert rewires == 0


def other_momentum(rank: int, size: int):
    training = trained(rank, size, "snfs")
    training.optimizer.state[training.model[2].weight_values]["momentum_buffer"] += rank
    return refused(training)


def test_momentum_that_decides_is_compared(two):
    for message in two.run(other_momentum):
        assert "layer '2': rank 1 has other optimizer state than rank 0" in message


def decisions(rank: int, size: int):
    """DeepR draws noise, signs and positions."""
    training = trained(rank, size, "deepr", eta=0.5)
    torch.manual_seed(rank)  # of no importance
    for number in range(5):
        step(training.wrapped, training.optimizer, number, rank, size)
        training.rewirer.step()
    assert training.rewirer.rewires >= 4
    return state_of(training.model), {
        name: signs.cpu() for name, signs in training.rewirer.signs.items()
    }


def test_all_processes_draw_the_same(two):
    torch.testing.assert_close(*two.run(decisions), rtol=0, atol=0)


def diverged(rank: int, size: int):
    """DeepR: one process would find a weight to replace, the other none."""
    training = trained(rank, size, "deepr", temperature=0.0, l1=0.0)
    if rank:
        with torch.no_grad():
            training.model[4].weight_values.neg_()
    return message_of(training.rewirer.step)


def test_deep_rewiring_compares_before_it_looks(two):
    for message in two.run(diverged):
        assert "layer '4': rank 1 has other values than rank 0" in message


class Picks(nn.Module):
    """Each process uses one of two layers: `wide` on rank 0, `deep` on rank 1."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = SparseLinear(6, 5, nnz=9, dtype=torch.float64)
        self.deep = SparseLinear(6, 5, nnz=9, dtype=torch.float64)

    def forward(self, x, which):
        return self.wide(x) if which == 0 else self.deep(x)


def grow_unlike(rank: int, size: int):
    torch.manual_seed(0)
    model = Picks().to(device())
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    rewirer = RigL(wrapped, sgd(model), fraction=0.4, every=1, length=50)
    torch.manual_seed(rank)
    x = torch.randn(4, 6, dtype=torch.float64, device=device())
    wrapped(x, rank).square().sum().backward()
    dense = {}
    for index, layer in enumerate((model.wide, model.deep)):
        own = 2 * layer(x).T @ x if index == rank else torch.zeros(5, 6, device=device())
        dense[index] = (own / size).detach().cpu().double()
    free = [layer.to_dense() == 0 for layer in (model.wide, model.deep)]
    before = [set(layer.topology.linear_positions().tolist()) for layer in (model.wide, model.deep)]
    report = rewirer.step()
    grown = [
        sorted(set(layer.topology.linear_positions().tolist()) - old)
        for layer, old in zip((model.wide, model.deep), before, strict=True)
    ]
    return dense, [f.cpu() for f in free], grown, report.grown


def test_a_layer_that_only_one_process_used_grows_by_its_gradient(two):
    answers = two.run(grow_unlike)
    assert answers[0][2] == answers[1][2]
    for index in range(2):
        gradient = sum(answer[0][index] for answer in answers).abs()
        gradient[~answers[0][1][index]] = -1.0
        count = len(answers[0][2][index])
        assert count == 4
        best = gradient.flatten().topk(count).indices.sort().values.tolist()
        assert answers[0][2][index] == best


def no_gradient(rank: int, size: int):
    training = trained(rank, size, "rigl", every=2)
    training.rewirer.step()
    return message_of(training.rewirer.step)


def test_growth_by_gradient_without_one_is_refused_everywhere(two):
    for message in two.run(no_gradient):
        assert message.startswith("rewire: gradient growth found no gradient")


def overflow(rank: int, size: int):
    """A gradient that is not finite in one process leaves the layer alone in all."""
    training = trained(rank, size, "rigl", every=2)
    training.rewirer.step()
    x, y = batch(1, rank, size)
    if rank == 1:
        x[0, 0, 0, 0] = math.inf
    (training.wrapped(x) - y).square().mean().backward()
    report = training.rewirer.step()
    return [(row.name, row.grown) for row in report.layers]


def test_a_gradient_that_is_not_finite_somewhere_leaves_the_layer_alone(two):
    first, second = two.run(overflow)
    assert first == second and dict(first)["0"] == 0


def forget_the_rewirer(rank: int, size: int):
    """One process never calls `step`: the group's timeout ends the other."""
    group = dist.new_group(backend="gloo")
    wrapped = DistributedDataParallel(make_model(), process_group=group)
    rewirer = make("set", wrapped, sgd(wrapped))
    dist.barrier()
    dist.distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=2), group)  # not of the start
    message = message_of(rewirer.step) if rank == 0 else ""
    dist.barrier()
    return message, rewirer.iteration


def test_a_process_that_does_not_rewire_is_thought_of_when_the_others_time_out(two):
    (message, iteration), _ = two.run(forget_the_rewirer)
    assert message.startswith("rewirer.step(): the exchange with the other processes has failed")
    assert "has no rewirer, or had fewer batches" in message and iteration == 0
    assert "Timed out waiting 2000ms for " in message  # "recv operation" or "send operation"
