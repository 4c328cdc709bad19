"""Every method in training, its rewires made by the GPU's engine under the emulator."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from helpers.cuda_device import emulated
from helpers.cuda_rewire_cases import gpu_rewires
from helpers.method_training import METHODS, Training, assert_same
from helpers.rewire_models import make_model, train
from torch import nn

from dsr_kernels.nn import SparseConv2d, SparseLinear
from dsr_kernels.rewiring import DSR
from dsr_kernels.topology import Topology


@emulated
@pytest.mark.parametrize("method", METHODS)
def test_a_training_run_equals_the_cpus(method):
    expected, training = Training(method, "adam"), Training(method, "adam")
    list(expected.run(0, 13))
    with gpu_rewires() as opened:
        list(training.run(0, 13))
    assert len(opened) >= 3
    assert training.reports == expected.reports
    assert_same(training.state(), expected.state())


@emulated
@pytest.mark.parametrize("kind", [torch.optim.Rprop, torch.optim.Adagrad])
def test_state_that_does_not_start_at_0_equals_the_cpus(kind):
    arguments = {"initial_accumulator_value": 0.25} if kind is torch.optim.Adagrad else {}
    states = []
    for context in (nullcontext, gpu_rewires):
        model = make_model()
        optimizer = kind(model.parameters(), lr=0.01, **arguments)
        rewirer = DSR(model, optimizer, prune_fraction=0.3, threshold="exact", every=2)
        with context():
            train(model, optimizer, rewirer, 5)
        states.append((model.state_dict(), optimizer.state_dict()["state"]))
    assert_same([dict(states[0][0]), states[0][1]], [dict(states[1][0]), states[1][1]])
    starts = {torch.optim.Rprop: ("step_size", 0.01), torch.optim.Adagrad: ("sum", 0.25)}
    key, start = starts[kind]
    rewirer.rewire()
    assert (optimizer.state[model[3].weight_values][key] == start).any()


def kernels_of_two_sizes(threshold: str):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # of the biases
    conv, linear = SparseConv2d(8, 16, 3), SparseLinear(16, 40, nnz=300)
    pattern = Topology.random_kernels(conv.weight_shape, 400, generator=generator)
    values = torch.randn(pattern.nnz, generator=generator)
    conv.replace_topology(pattern.crow_indices, pattern.col_indices, values)
    pattern = Topology.random((40, 16), 300, generator=generator)
    values = torch.randn(300, generator=generator)
    linear.replace_topology(pattern.crow_indices, pattern.col_indices, values)
    model = nn.Sequential(conv, nn.Flatten(), linear)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {"threshold": threshold, "initial_threshold": 0.7, "granularity": "kernel"}
    return model, DSR(model, optimizer, prune_count=100, allocation="M", **arguments)


@emulated
@pytest.mark.parametrize("threshold", ["exact", "adaptive"])
def test_whole_kernels_equal_the_cpus(threshold):
    (model, cpu), (other, gpu) = kernels_of_two_sizes(threshold), kernels_of_two_sizes(threshold)
    for _ in range(3):
        wanted = cpu.rewire()
        with gpu_rewires():
            report = gpu.rewire()
        assert report.layers == wanted.layers and report.threshold == wanted.threshold
        assert report.pruned > 0
        assert_same(dict(other.state_dict()), dict(model.state_dict()))
        assert gpu.state_dict() == cpu.state_dict()
