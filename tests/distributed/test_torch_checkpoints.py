"""torch.distributed.checkpoint: models whose layers have other sizes than the checkpoint's."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from helpers.parallel_training import assert_equal, make, make_model, sgd, state_of, step
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from dsr_kernels.distributed import DistributedDataParallel, SparseLoadPlanner
from dsr_kernels.nn import SparseLinear
from dsr_kernels.rewiring import DSR

OPTIMIZERS = {
    "momentum": sgd,
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
}


def begin(kind: str, method: str, size: int, seed: int):
    model = make_model(seed=seed)
    wrapped = DistributedDataParallel(model) if size > 1 else model
    optimizer = OPTIMIZERS[kind](model)
    return model, wrapped, optimizer, make(method, wrapped, optimizer)


def go_on(model, wrapped, optimizer, rewirer, rank: int, size: int, steps: range):
    for number in steps:
        step(wrapped, optimizer, number, rank, size)
        rewirer.step()
    return state_of(model)


def save_and_load(rank: int, size: int, path: str, kind: str, method: str):
    """What a training comes to that goes on, and one that was resumed in a fresh model."""
    first = begin(kind, method, size, seed=0)
    go_on(*first, rank, size, range(12))
    model, optimizer = get_state_dict(first[1], first[2])
    state = {"model": model, "optimizer": optimizer, "rewirer": pickle.dumps(first[3].state_dict())}
    dcp.save(state, checkpoint_id=path, no_dist=size == 1)
    expected = go_on(*first, rank, size, range(12, 24))

    second = begin(kind, method, size, seed=1)
    _, wrapped, optimizer, rewirer = second
    own = state_of(second[0])
    model, held = get_state_dict(wrapped, optimizer)
    state = {"model": model, "optimizer": held, "rewirer": b""}
    planner = SparseLoadPlanner()
    dcp.load(state, checkpoint_id=path, planner=planner, no_dist=size == 1)
    sparse = [key for key in own if key.endswith(("weight_values", "_indices"))]
    now = state_of(second[0])  # the model has nothing yet
    assert all(torch.equal(own[key], now[key]) for key in sparse)
    sizes = [state["model"][key].shape == own[key].shape for key in sparse]
    set_state_dict(
        wrapped, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    rewirer.load_state_dict(pickle.loads(state["rewirer"]))
    return expected, go_on(*second, rank, size, range(12, 24)), all(sizes)


@pytest.mark.parametrize("method", ["dsr", "set"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_training_is_resumed_by_two_processes(two, tmp_path, kind, method):
    for expected, resumed, same_sizes in two.run(save_and_load, str(tmp_path), kind, method):
        assert_equal(expected, resumed, exactly=True)
        assert same_sizes == (method == "set")


@pytest.mark.parametrize("method", ["dsr", "deepr"])
def test_a_training_is_resumed_by_one_process(tmp_path, method):
    expected, resumed, _ = save_and_load(0, 1, str(tmp_path), "momentum", method)
    assert_equal(expected, resumed, exactly=True)


def load_alone(rank: int, size: int, path: str):
    """What one process saved, two load."""
    model = make_model(seed=5)
    wrapped = DistributedDataParallel(model)
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=path, planner=SparseLoadPlanner())
    model.load_state_dict(state["model"])
    step(wrapped, sgd(model), 0, rank, size)
    return state_of(model)


def test_one_process_saves_and_two_load(two, tmp_path):
    training = begin("momentum", "dsr", 1, 0)
    go_on(*training, 0, 1, range(12))
    model = training[0]
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    states = two.run(load_alone, str(tmp_path))
    assert_equal(*states, exactly=True)
    step(model, sgd(model), 0, 0, 1)
    assert_equal(states[0], state_of(model))


def test_other_mismatches_are_still_refused(tmp_path):
    model = nn.Sequential(SparseLinear(8, 6, nnz=12), nn.Linear(6, 4))
    dcp.save({"model": model.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    other = nn.Sequential(SparseLinear(8, 6, nnz=9), nn.Linear(6, 5))
    before = copy.deepcopy(other.state_dict())
    state = {"model": other.state_dict()}
    with pytest.raises(dcp.api.CheckpointException, match=r"model\.1\.\w+"):
        dcp.load(state, checkpoint_id=tmp_path, planner=SparseLoadPlanner(), no_dist=True)
    for key in ("0.weight_values", "0.crow_indices", "0.col_indices"):
        assert torch.equal(before[key], other.state_dict()[key])
    third = nn.Sequential(SparseLinear(6, 6, nnz=9), nn.Linear(6, 4))
    state = {"model": third.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path, planner=SparseLoadPlanner(), no_dist=True)
    with pytest.raises(RuntimeError, match=r"expected a weight of shape \(6, 6\)"):
        third.load_state_dict(state["model"])
    assert third[0].nnz == 9


def test_without_the_planner_torch_refuses_other_sizes(tmp_path):
    """What the planner is for: once this loads, it can go."""
    model = nn.Sequential(SparseLinear(8, 6, nnz=12))
    dcp.save(model.state_dict(), checkpoint_id=tmp_path, no_dist=True)
    other = nn.Sequential(SparseLinear(8, 6, nnz=9))
    with pytest.raises(dcp.api.CheckpointException):
        dcp.load(other.state_dict(), checkpoint_id=tmp_path, no_dist=True)
    state = other.state_dict()
    dcp.load(state, checkpoint_id=tmp_path, planner=SparseLoadPlanner(), no_dist=True)
    other.load_state_dict(state)
    assert torch.equal(model[0].to_dense(), other[0].to_dense())
    assert DSR(other, sgd(other)).nnz == 12
